"""The background half of a save: write this rank's part, and as rank 0 commit for all.

All ranks or none: there is one rename, by rank 0, after every other rank's sealed report says that
its files are fsynced. A rank that fails reports so; one that dies reports nothing and rank 0 gives
up after `timeout_s`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from speculators_patches.checkpointing import durable, policy
from speculators_patches.checkpointing.durable import Chunk
from speculators_patches.checkpointing.errors import (
    CheckpointError,
    CorruptError,
    SaveFailedError,
    UnfitError,
)
from speculators_patches.checkpointing.manifest import FileEntry, seal, unseal
from speculators_patches.checkpointing.saved import file_names, report_name
from speculators_patches.checkpointing.store import Stage, Store

POLL_S = 0.02


class Part(Protocol):
    """What a rank has to write (`state.Snapshot`)."""

    def settle(self) -> None: ...

    def tensor_chunks(self) -> Any: ...

    def tree_chunks(self) -> Any: ...


@dataclass(frozen=True)
class Save:
    """One save, the same on every rank but for `rank`, `part` and `cancelled`."""

    root: Path
    stage: str
    rank: int
    world_size: int
    part: Part
    tags: tuple[str, ...]
    meta: Mapping[str, Any]
    timeout_s: float
    # Raises UnfitError if this rank's part must not be saved.
    check: Callable[[], None] = lambda: None
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Published:
    """What came of it. `notes`: sentences worth a line in the log."""

    name: str
    size: int
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _write_part(stage: Stage, save: Save) -> None:
    save.check()
    tensor_file, tree_file = file_names(save.rank)
    chunks: list[Chunk] = list(save.part.tensor_chunks())
    stage.add(tensor_file, chunks, "tensors")
    stage.add(tree_file, save.part.tree_chunks(), "tree")


def publish_rank0(store: Store, save: Save, keep: policy.Keep, *, read_back: bool) -> Published:
    """Rank 0: write, wait for the others, commit, read back, prune.

    Raises:
        UnfitError: some rank's state must not be saved; nothing was published.
        SaveFailedError: nothing was published and the staging folder is removed, unless the text
            says that it is in place (the disk failed after the rename).
        CorruptError: published, but it does not read back; it is not counted when pruning.
    """
    stage = Stage(save.root, save.stage)
    try:
        stage.create()
        _write_part(stage, save)
        for rank in range(1, save.world_size):
            stage.files.update(_await_report(stage, rank, save))
        record = store.commit(stage, tags=save.tags, world_size=save.world_size, meta=save.meta)
    except Exception as error:
        if not stage.path.is_dir() and (save.root / stage.name).is_dir():
            raise SaveFailedError(
                f"step {stage.step} is in place as {stage.name}, but the disk did not confirm "
                f"it: {error}"
            ) from error
        left = _abandon(stage)
        if isinstance(error, UnfitError):
            raise
        more = f"; {left} could not be removed" if left else ""
        raise SaveFailedError(f"step {stage.step} was not saved: {error}{more}") from error
    notes: list[str] = []
    try:
        store.point_at(record)
    except OSError as error:
        notes.append(f"{record.name} is committed, but LATEST could not be renewed: {error}")
    if read_back:
        store.read_back(record)
    removed: list[str] = []
    try:
        removed, refused = store.prune(policy.doomed(store.records(), keep))
        notes += refused
    except OSError as error:
        notes.append(f"older checkpoints could not be removed: {error}")
    size = record.manifest.size if record.manifest else 0
    return Published(record.name, size, tuple(removed), tuple(notes))


def _abandon(stage: Stage) -> str:
    """Remove the staging folder; what is left of it, as text."""
    try:
        left = stage.abandon()
    except OSError as error:
        return f"{stage.path} ({error})"
    return f"{stage.path} (holds {left[0]!r})" if left else ""


def publish_other(save: Save) -> Published:
    """Ranks above 0: write, report, and wait to see it committed.

    Raises:
        UnfitError: this rank's state must not be saved.
        SaveFailedError: this rank could not write, or rank 0 did not commit.
    """
    stage = Stage(save.root, save.stage)
    try:
        stage.join()
        _write_part(stage, save)
        durable.sync_folder(stage.path)
    except UnfitError as error:
        _report(stage, save.rank, {"unfit": str(error)})
        raise
    except (OSError, CheckpointError) as error:
        for name in file_names(save.rank):  # give the space back, so that the report fits
            (stage.path / name).unlink(missing_ok=True)
        _report(stage, save.rank, {"error": str(error)})
        raise SaveFailedError(
            f"rank {save.rank}: step {stage.step} was not saved: {error}"
        ) from error
    _report(stage, save.rank, {"files": {name: asdict(e) for name, e in stage.files.items()}})
    deadline = time.monotonic() + save.timeout_s
    while not (save.root / stage.name).is_dir():
        gone = not stage.path.is_dir() and not (save.root / stage.name).is_dir()
        if gone or save.cancelled.is_set() or time.monotonic() > deadline:
            _abandon(stage)
            why = "gave up" if gone or save.cancelled.is_set() else "did not commit in time"
            raise SaveFailedError(
                f"rank {save.rank}: step {stage.step} was not saved: rank 0 {why}"
            )
        time.sleep(POLL_S)
    return Published(stage.name, sum(entry.size for entry in stage.files.values()))


def _report(stage: Stage, rank: int, content: Mapping[str, Any]) -> None:
    durable.write_file(stage.path / report_name(rank), [seal(content)], "report")


def _await_report(stage: Stage, rank: int, save: Save) -> dict[str, FileEntry]:
    """The files that `rank` says it wrote and fsynced. Its report has then done its duty and goes:

    it becomes readable before its own fsync, so it must not be part of what is committed.
    """
    path = stage.path / report_name(rank)
    deadline = time.monotonic() + save.timeout_s
    while True:
        try:
            content = unseal(path.read_bytes(), path.name)
            break
        except (FileNotFoundError, CorruptError):  # not there, or not complete yet
            if time.monotonic() > deadline:
                raise SaveFailedError(
                    f"rank {rank} did not report within {save.timeout_s:.0f} s"
                ) from None
            time.sleep(POLL_S)
    if "unfit" in content:
        raise UnfitError(content["unfit"])
    if "error" in content:
        raise SaveFailedError(f"rank {rank} could not write its part: {content['error']}")
    files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
    for name, entry in files.items():
        if (found := (stage.path / name).stat().st_size) != entry.size:
            raise SaveFailedError(f"{name} has {found} bytes where rank {rank} wrote {entry.size}")
    path.unlink()
    return files
