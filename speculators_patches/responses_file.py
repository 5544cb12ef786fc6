"""A responses file that survives a kill at any byte: whole conversations are appended, or nothing.

`regenerate-responses` writes one JSON object a line; a conversation (`primary_id`) has one row for
each answer of the body, one after the other. What a killed, full or unpatched writer can leave:
half a line, two lines glued together, only the first rows of a conversation, a conversation twice.
Rows carry how many rows their conversation has (`metadata.conversation_rows`), so that `repair` can
tell a whole one from its beginning; rows without that number (of an unpatched upstream) are taken
as they are.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

ROWS = "conversation_rows"
# Between two fsyncs. A power cut can take back this much; a kill of the process takes back nothing.
FSYNC_EVERY_S = 1.0


class Busy(RuntimeError):
    """Another process writes this file; one sentence."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by whoever repairs or appends to `path`, so that a process that was left behind by a
    kill and one started after it never do so together. The lock goes with the process.

    Raises:
        Busy: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.lock")
    with beside.open("a+", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Busy(
                f"process {lock.read().strip() or 'unknown'} is writing {path}; wait for it, or "
                "end it, and run the same command again"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@dataclass
class Repair:
    """What `repair` found.

    Attributes:
        conversations: ids of the conversations that are whole, in the order of the file.
        broken_lines: lines that were no row.
        incomplete: ids of conversations of which rows were missing.
        doubled: ids of conversations that stood there more than once.
    """

    conversations: list[str] = field(default_factory=list)
    broken_lines: int = 0
    incomplete: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.broken_lines or self.incomplete or self.doubled)

    def __str__(self) -> str:
        return (
            f"{self.broken_lines} broken lines, {len(self.incomplete)} incomplete and "
            f"{len(self.doubled)} doubled conversations"
        )


def repair(path: Path) -> Repair:
    """Leaves in the file each whole conversation once; what went is to be asked again.

    The file is replaced atomically, or cut where only its end is broken, or left as it is.

    Raises:
        OSError: it cannot be read or replaced.
    """
    found = Repair()
    if not path.exists():
        return found
    kept: list[tuple[int, int]] = []
    known: set[str] = set()
    with path.open("rb") as file:
        for name, block in groupby(_lines(file), key=lambda line: line.conversation):
            lines = list(block)
            if name is None:
                found.broken_lines += len(lines)
                continue
            for copy in _copies(lines):
                if not _is_whole(copy):
                    found.incomplete.append(name)
                elif name in known:
                    found.doubled.append(name)
                else:
                    known.add(name)
                    found.conversations.append(name)
                    kept.append((copy[0].start, copy[-1].end))
    if found.changed:
        _keep(path, kept)
    return found


@dataclass(frozen=True)
class _Line:
    start: int
    end: int
    conversation: str | None  # None: it is no row
    row: str
    of: int | None


def _lines(file: Any) -> Iterator[_Line]:
    start = 0
    for text in file:
        end = start + len(text)
        conversation, row, of = _row(text)
        yield _Line(start, end, conversation, row, of)
        start = end


def _row(text: bytes) -> tuple[str | None, str, int | None]:
    if not text.endswith(b"\n"):
        return None, "", None
    try:
        row = json.loads(text)
        ids, mask = row["input_ids"], row["loss_mask"]
        name = row.get("primary_id") or row["id"]
        of = row.get("metadata", {}).get(ROWS)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, "", None
    if len(ids) != len(mask):
        return None, "", None
    return str(name), str(row.get("id", "")), of


def _copies(lines: list[_Line]) -> Iterator[list[_Line]]:
    """Neighbouring rows of one conversation, cut where it begins again."""
    copy: list[_Line] = []
    seen: set[str] = set()
    for line in lines:
        if line.row in seen or (copy and line.row.endswith("_gen0")):
            yield copy
            copy, seen = [], set()
        copy.append(line)
        seen.add(line.row)
    yield copy


def _is_whole(copy: list[_Line]) -> bool:
    return all(
        line.of is None or (line.of == len(copy) and line.row == f"{line.conversation}_gen{number}")
        for number, line in enumerate(copy)
    )


def _keep(path: Path, kept: list[tuple[int, int]]) -> None:
    ends = [0, *(end for _, end in kept)]
    if all(start == end for (start, _), end in zip(kept, ends, strict=False)):
        with path.open("rb+") as file:
            file.truncate(ends[-1])
            os.fsync(file.fileno())
        return
    staging = path.with_name(f".{path.name}.repaired")
    with path.open("rb") as source, staging.open("wb") as target:
        for start, end in kept:
            source.seek(start)
            target.write(source.read(end - start))
        target.flush()
        os.fsync(target.fileno())
    staging.replace(path)
    _fsync_folder(path.parent)


class WholeAppends:
    """Stands in for the text file that upstream writes rows to: `flush` appends them all, or none.

    Args:
        file: the open file, in append mode; nothing else may write to it.
        failed: called with the error when the disk does not take a conversation.
        room_s: how long to wait for room on a disk that is full.
        waiting: called with the error when that begins.
    """

    def __init__(
        self,
        file: Any,
        failed: Callable[[OSError], None],
        room_s: float = 0.0,
        waiting: Callable[[OSError], None] = lambda _: None,
    ) -> None:
        self._descriptor: int = file.fileno()
        self._failed, self._waiting = failed, waiting
        self._room_s = room_s
        self._rows: list[str] = []
        self._synced = 0.0

    def write(self, text: str) -> None:
        self._rows.append(text)

    def flush(self) -> None:
        """Appends what was written since.

        Raises:
            OSError: nothing of it is in the file.
        """
        data = "".join(self._rows).encode()
        self._rows = []
        try:
            self._append(data)
            if time.monotonic() - self._synced >= FSYNC_EVERY_S:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()
        except OSError as error:
            self._failed(error)
            raise

    def _append(self, data: bytes) -> None:
        """Blocks while the disk is full: answers that come meanwhile have no room either."""
        began: float | None = None
        while True:
            try:
                return append_whole(self._descriptor, data)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                now = time.monotonic()
                if began is None:
                    began = now
                    if self._room_s:
                        self._waiting(error)
                if now - began >= self._room_s:
                    raise
            time.sleep(min(1.0, self._room_s))


def append_whole(descriptor: int, data: bytes) -> None:
    """Appends `data`; where the disk takes only a part of it, the file is cut back.

    Raises:
        OSError: nothing was appended.
    """
    before = os.fstat(descriptor).st_size
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        os.ftruncate(descriptor, before)
        raise


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
