"""Reading a store: what is there, whether it is whole, and which one to resume from.

Takes no lock and changes nothing, so it is safe beside a running training.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path

from speculators_patches.checkpointing import names
from speculators_patches.checkpointing.durable import hash_file
from speculators_patches.checkpointing.errors import CorruptError
from speculators_patches.checkpointing.manifest import MANIFEST, Manifest, decode


@dataclass(frozen=True)
class Record:
    """One committed folder.

    Attributes:
        manifest: None if unreadable.
        problem: why it can't be used, as far as a look at names and sizes tells; "" if none.
        foreign: names inside that we did not write.
    """

    path: Path
    sequence: int
    step: int
    manifest: Manifest | None
    problem: str
    foreign: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def tags(self) -> tuple[str, ...]:
        return self.manifest.tags if self.manifest else ()


@dataclass(frozen=True)
class PassedOver:
    """A checkpoint that is newer than the one used, and why it was not used."""

    name: str
    reason: str


def inspect(path: Path) -> Record | None:
    """Look at one folder without reading its data; None if it is not named as a commit of ours."""
    name = names.parse(path.name)
    if name is None or name.hidden or path.is_symlink() or not path.is_dir():
        return None
    record = Record(path, name.sequence, name.step, None, "")
    try:
        manifest = decode((path / MANIFEST).read_bytes())
        if manifest.name != path.name:
            raise CorruptError(f"{MANIFEST} belongs to {manifest.name}")
        for file, entry in manifest.files.items():
            status = (path / file).lstat()
            if not stat.S_ISREG(status.st_mode):
                raise CorruptError(f"{file} is not a regular file")
            if status.st_size != entry.size:
                raise CorruptError(f"{file} has {status.st_size} bytes, {entry.size} were written")
        listed = {MANIFEST, *manifest.files}
        foreign = tuple(sorted(p.name for p in path.iterdir() if p.name not in listed))
    except FileNotFoundError as error:
        return Record(
            path, name.sequence, name.step, None, f"{Path(error.filename).name} is missing"
        )
    except (CorruptError, OSError) as error:
        return Record(path, name.sequence, name.step, None, str(error))
    return Record(path, record.sequence, record.step, manifest, "", foreign)


def verify(record: Record, *, drop_cache: bool = False) -> None:
    """Read every file and compare size and SHA-256 with the manifest.

    Raises:
        CorruptError: naming the file and the difference.
    """
    if record.manifest is None:
        raise CorruptError(f"{record.name}: {record.problem}")
    for file, entry in record.manifest.files.items():
        try:
            found = hash_file(record.path / file, drop_cache=drop_cache)
        except OSError as error:
            raise CorruptError(f"{record.name}: {file} can't be read ({error})") from None
        if found != entry:
            raise CorruptError(
                f"{record.name}: {file} is altered (SHA-256 {found.sha256[:12]}..., "
                f"{entry.sha256[:12]}... was written)"
            )


def records(root: Path) -> list[Record]:
    """Every committed folder under `root`, newest first; torn ones carry their `problem`."""
    if not root.is_dir():
        return []
    found = [record for path in root.iterdir() if (record := inspect(path)) is not None]
    return sorted(found, key=lambda record: record.sequence, reverse=True)


def pointed_at(root: Path) -> str | None:
    """What LATEST names, or None if it is absent or unreadable."""
    try:
        name = json.loads((root / names.POINTER).read_text())["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None


def newest(root: Path) -> tuple[Record | None, list[PassedOver]]:
    """The newest committed checkpoint whose every byte is as written, and those passed over.

    LATEST is not needed for this (a kill between the rename and the pointer leaves it one behind);
    but a commit that it names and that is gone was taken away by someone, and is reported.
    """
    passed: list[PassedOver] = []
    found = records(root)
    pointer = pointed_at(root)
    if pointer and names.parse(pointer) and pointer not in {record.name for record in found}:
        passed.append(PassedOver(pointer, f"{names.POINTER} names it, but it is gone"))
    for record in found:
        try:
            verify(record)
        except CorruptError as error:
            passed.append(PassedOver(record.name, str(error).removeprefix(f"{record.name}: ")))
        else:
            return record, passed
    return None, passed
