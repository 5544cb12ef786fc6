"""The store: how a checkpoint comes to be, and how it goes.

Publishing: a staging folder of its own beside the target; files, each fsynced; the manifest last;
fsync of the staging folder; rename to the committed name; fsync of the parent; the pointer file
replaced atomically. Killed anywhere, or without power, there is either the old set of commits or
the old set and the new one, never a half one under a committed name.

Removing goes the other way round: rename out of the committed names first, then delete exactly the
files that the manifest lists, then `rmdir`. A foreign file is never deleted: a
folder that holds one is not pruned at all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speculators_patches.checkpointing import durable, names, reading
from speculators_patches.checkpointing.durable import Chunk
from speculators_patches.checkpointing.errors import CheckpointError, CorruptError
from speculators_patches.checkpointing.failpoints import hit
from speculators_patches.checkpointing.manifest import (
    FILE_NAME,
    MANIFEST,
    ORIGIN,
    FileEntry,
    Manifest,
    decode,
    encode,
)
from speculators_patches.checkpointing.ownership import WriterLock, origin


def unlink_ours(folder: Path, *, point: str = "sweep.unlinked") -> list[str]:
    """Delete from `folder` the files that we write, by name, and the folder if that empties it.

    Interrupted, it is taken up by `Store.sweep`. Returns the names left.
    """
    ours = [p for p in folder.iterdir() if FILE_NAME.fullmatch(p.name) and not p.is_dir()]
    for path in sorted(ours, key=lambda p: p.name):
        path.unlink(missing_ok=True)
        hit(point)
    left = sorted(p.name for p in folder.iterdir())
    if not left:
        folder.rmdir()
    return left


class Stage:
    """A checkpoint being written. Rank 0 creates, commits or abandons it; others only add files."""

    def __init__(self, root: Path, folder: str):
        name = names.parse(folder)
        if name is None or name.hidden != "staging":
            raise CheckpointError(f"{folder!r} is not the name of a staging folder")
        self.root = root
        self.path = root / folder
        self.name = name.committed
        self.sequence = name.sequence
        self.step = name.step
        self.files: dict[str, FileEntry] = {}

    def create(self) -> None:
        """Rank 0: make the folder and say inside whose it is."""
        self.path.mkdir(exist_ok=True)  # another rank may have come first
        hit("stage.created")
        self.add(ORIGIN, [json.dumps(origin()).encode()], "origin")

    def join(self) -> None:
        """Other ranks: make sure the folder is there."""
        self.path.mkdir(exist_ok=True)

    def add(self, name: str, chunks: Iterable[Chunk], kind: str) -> FileEntry:
        """Write and fsync one file; its size and SHA-256."""
        if not FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise CheckpointError(f"{name!r} is not a name that a checkpoint may hold")
        entry = durable.write_file(self.path / name, chunks, kind)
        self.files[name] = entry
        return entry

    def abandon(self) -> list[str]:
        """Remove what was staged; the names left because they are not ours (normally none)."""
        return unlink_ours(self.path) if self.path.is_dir() else []


class Store:
    """A folder of checkpoints, open for writing by this process alone.

    Args:
        root: created if absent. Foreign files and folders in it are never touched.

    Raises:
        StoreBusyError: another live process has it open.
    """

    def __init__(self, root: Path):
        durable.make_folder(root)
        self.root = root
        self._lock = WriterLock(root)
        # Found bad while open: neither counted nor removed by pruning.
        self.known_bad: dict[str, str] = {}
        self._whole: set[str] = set()  # every byte was read and found right while open
        self._next = 1 + max(
            (
                name.sequence
                for text in [*(p.name for p in root.iterdir()), reading.pointed_at(root) or ""]
                if (name := names.parse(text))
            ),
            default=0,
        )

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def records(self) -> list[reading.Record]:
        """Committed folders, newest first, with what is known to be bad marked so."""
        return [
            record
            if record.problem or record.name not in self.known_bad
            else reading.Record(
                record.path,
                record.sequence,
                record.step,
                None,
                self.known_bad[record.name],
                record.foreign,
            )
            for record in reading.records(self.root)
        ]

    def newest(self) -> tuple[reading.Record | None, list[reading.PassedOver]]:
        """`reading.newest`, remembering what was passed over."""
        record, passed = reading.newest(self.root)
        self.known_bad.update((one.name, one.reason) for one in passed)
        if record is not None:
            self._whole.add(record.name)
        return record, passed

    def next_stage_name(self, step: int) -> str:
        """A fresh staging name for `step`; touches no disk, so the training thread may call it."""
        committed = names.committed_name(self._next, step)
        self._next += 1
        return names.hidden_name("staging", committed)

    def commit(
        self, stage: Stage, *, tags: Iterable[str], world_size: int, meta: Mapping[str, Any]
    ) -> reading.Record:
        """Publish `stage`; it is the newest checkpoint, durably, when this returns.

        Raises:
            OSError: not published (`stage.abandon()` is the caller's), unless the folder already
                has its committed name: then it is, but may not survive power loss.
        """
        manifest = Manifest(
            name=stage.name,
            sequence=stage.sequence,
            step=stage.step,
            tags=tuple(tags),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            world_size=world_size,
            meta=meta,
            files=stage.files,
        )
        durable.write_file(stage.path / MANIFEST, [encode(manifest)], "manifest")
        durable.sync_folder(stage.path)
        hit("stage.synced")
        target = self.root / stage.name
        if os.path.lexists(target):
            raise CheckpointError(f"{target} already exists and was not written by this run")
        stage.path.rename(target)
        hit("commit.renamed")
        durable.sync_folder(self.root)
        hit("commit.parent_synced")
        record = reading.inspect(target)
        if record is None or record.problem:
            problem = record.problem if record else "it vanished"
            self.known_bad[stage.name] = problem
            raise CorruptError(f"{stage.name} was written but does not read back: {problem}")
        return record

    def point_at(self, record: reading.Record) -> None:
        """Let LATEST name `record`. Nothing depends on it but people and scripts.

        Raises:
            OSError: LATEST is as it was.
        """
        content = json.dumps({"name": record.name, "step": record.step}).encode() + b"\n"
        durable.replace_file(self.root / names.POINTER, content, "pointer")

    def read_back(self, record: reading.Record) -> None:
        """Verify a fresh commit from the device, not from the cache.

        Raises:
            CorruptError: it is remembered as bad, so that pruning does not count on it.
        """
        try:
            reading.verify(record, drop_cache=True)
        except CorruptError as error:
            self.known_bad[record.name] = str(error).removeprefix(f"{record.name}: ")
            raise
        self._whole.add(record.name)

    def prune(self, doomed: Iterable[str]) -> tuple[list[str], list[str]]:
        """Remove the committed checkpoints named.

        Never removes one that is torn, altered in size or known to be bad, or one that holds a
        foreign file; and nothing at all unless one that stays was read and found whole.

        Returns:
            (removed names, one sentence for each that was kept against the wish)
        """
        removed: list[str] = []
        refused: list[str] = []
        current = {record.name: record for record in self.records()}
        wanted = list(doomed)
        stays = [r for r in current.values() if not r.problem and r.name not in wanted]
        if wanted and not any(self._is_whole(record) for record in stays):
            return [], [f"nothing is removed from {self.root}: of what would stay nothing is whole"]
        for name in wanted:
            record = current.get(name)
            if record is None:
                refused.append(f"{name} is not a checkpoint in {self.root}")
            elif record.problem:
                refused.append(f"{name} is kept: {record.problem}")
            elif record.foreign:
                refused.append(f"{name} is kept: {record.foreign[0]!r} in it is not ours")
            else:
                out = self.root / names.hidden_name("pruned", name)
                record.path.rename(out)
                hit("prune.renamed")
                durable.sync_folder(self.root)
                if left := unlink_ours(out, point="prune.unlinked"):
                    refused.append(f"{out} is kept: {left[0]!r} in it is not ours")
                hit("prune.done")
                removed.append(name)
        return removed, refused

    def _is_whole(self, record: reading.Record) -> bool:
        if record.name not in self._whole:
            try:
                self.read_back(record)
            except CorruptError:
                return False
        return True

    def sweep(self, *, in_flight: str | None = None) -> tuple[list[str], list[str]]:
        """Remove what dead writers left: staging folders, half-removed ones, pointer temporaries.

        Holding the lock shows that their writers are dead. A hidden folder is ours if it carries
        our origin or manifest, or nothing at all.

        Returns:
            (removed names, one sentence for each left in place)
        """
        removed: list[str] = []
        kept: list[str] = []
        for path in sorted(self.root.iterdir()):
            name = names.parse(path.name)
            temporary = names.is_temporary_pointer(path.name) and path.is_file()
            hidden = name is not None and name.hidden and path.is_dir()
            if path.is_symlink() or path.name == in_flight or not (temporary or hidden):
                continue
            if not self._lock.exclusive:
                kept.append(f"{path} is left: this file system has no locks to show it is unused")
            elif temporary:
                path.unlink()
                removed.append(path.name)
            elif not _is_ours(path):
                kept.append(f"{path} is left: it does not say that we wrote it")
            elif left := unlink_ours(path):
                kept.append(f"{path} is left: {left[0]!r} in it is not ours")
            else:
                removed.append(path.name)
        return removed, kept


def _is_ours(folder: Path) -> bool:
    """Whether a hidden folder carries our mark, or is empty (killed before the mark was written).

    A rank other than 0 may have written its file before rank 0 wrote the mark; a folder that holds
    nothing but names we write, under a name that only we make, is ours too.
    """
    found = {p.name for p in folder.iterdir()}
    if MANIFEST in found:
        try:
            return decode((folder / MANIFEST).read_bytes()).name in folder.name
        except (CorruptError, OSError):
            pass  # torn by the very kill that left the folder; the other names decide
    return all(FILE_NAME.fullmatch(name) for name in found) or ORIGIN in found
