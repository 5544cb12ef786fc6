"""What must be the same for a resumed run to be the same run.

A fingerprint is a flat list of named fields with plain values. A difference refuses the resume and
names the field, both values, and the flag that allows it; some can't be allowed, because nothing
exact could follow.
"""

from __future__ import annotations

import array
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from speculators_patches.checkpointing.errors import NotSameRunError

FLAG = "--resume-despite"
Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Field:
    """One thing that must not change.

    Attributes:
        name: dotted, e.g. `data.row_lengths`, `optimizer.muon_lr`.
        value: plain JSON; big things go in as `digest(...)`.
        overridable: False where another value can't lead to an exact run (world size).
    """

    name: str
    value: Scalar | list[Scalar]
    overridable: bool = True


@dataclass(frozen=True)
class Mismatch:
    name: str
    saved: Any
    current: Any
    overridable: bool

    def __str__(self) -> str:
        way_out = (
            f"allow it with {FLAG} {self.name}"
            if self.overridable
            else "it can't be overridden: start this run in another save folder"
        )
        return (
            f"{self.name} was {_show(self.saved)} in the checkpoint "
            f"and is {_show(self.current)} now; {way_out}"
        )


class _Absent:
    def __repr__(self) -> str:
        return "not recorded"


ABSENT = _Absent()


def _show(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value)


def digest(values: Iterable[int]) -> str:
    """Count and SHA-256 of a sequence of 64-bit integers (row lengths, a vocabulary mapping)."""
    numbers = array.array("q", values)
    return f"{len(numbers)}:{hashlib.sha256(numbers.tobytes()).hexdigest()[:32]}"


def to_json(fields: Iterable[Field]) -> dict[str, Any]:
    """The fields as a mapping for the manifest.

    Raises:
        ValueError: a name occurs twice.
    """
    result: dict[str, Any] = {}
    for field in fields:
        if field.name in result:
            raise ValueError(f"the fingerprint has two fields named {field.name!r}")
        # Through JSON once, so that what is compared later is what was stored (tuples, -0.0).
        result[field.name] = json.loads(json.dumps(field.value))
    return result


def compare(saved: Mapping[str, Any], current: Iterable[Field]) -> list[Mismatch]:
    """Every field that differs or is known to one side only, in the order of `current`."""
    fields = list(current)
    now = to_json(fields)
    overridable = {field.name: field.overridable for field in fields}
    order = [*now, *(name for name in saved if name not in now)]
    found = ((name, saved.get(name, ABSENT), now.get(name, ABSENT)) for name in order)
    return [
        Mismatch(name, before, after, overridable.get(name, True))
        for name, before, after in found
        # `1 == True` and `1 == 1.0` in Python; not so for a setting.
        if type(before) is not type(after) or before != after
    ]


def check(
    saved: Mapping[str, Any], current: Iterable[Field], despite: Collection[str] = ()
) -> list[Mismatch]:
    """The differences that `despite` (names given with --resume-despite) allows.

    Raises:
        NotSameRunError: naming every other difference, one a line.
        ValueError: `despite` names something that is no field.
    """
    fields = list(current)
    known = {field.name for field in fields} | set(saved)
    if unknown := sorted(set(despite) - known):
        raise ValueError(
            f"{FLAG} {unknown[0]}: no such field; there are {', '.join(sorted(known))}"
        )
    differences = compare(saved, fields)
    refused = [d for d in differences if d.name not in despite or not d.overridable]
    if refused:
        raise NotSameRunError(
            "this is not the run that the checkpoint belongs to: "
            + "\n  ".join(["", *map(str, refused)]).lstrip("\n")
        )
    return differences
