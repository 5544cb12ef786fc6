"""What a run prints must not end it: a log on a disk that is full for a moment loses lines only.

Python raises OSError at the `print`, or the redrawn progress bar, that finds no room, in the middle
of training; checkpoints and hidden states, on the same disk, would have got over it.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LOST = b"\nspeculators_patches: %d bytes of output are lost, as the disk was full\n"


class Patient(io.FileIO):
    """A file that takes what it has no room for, drops it, and says so when there is room."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.lost = 0  # bytes

    def write(self, data: Any, /) -> int:
        """Bytes of `data` taken: all of them, where the disk is full.

        Raises:
            OSError: for any other reason.
        """
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            if self.lost:
                super().write(_LOST % self.lost)
                self.lost = 0
            while rest:  # to the end: nobody above an unbuffered stream asks again
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.lost += len(rest)
        return size


def endure_a_full_disk() -> None:
    """Standard output and error go on when the disk is full; no-op where they are no files."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper or isinstance(_raw(stream), Patient):
            continue
        try:
            descriptor = stream.fileno()
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                continue
            stream.flush()
        except (OSError, ValueError):  # closed
            continue
        setattr(sys, name, _like(stream, descriptor))


def _raw(stream: io.TextIOWrapper) -> Any:
    return getattr(stream.buffer, "raw", stream.buffer)


def _like(stream: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    raw = Patient(descriptor)
    unbuffered = not isinstance(stream.buffer, io.BufferedWriter)  # python -u
    buffer: Any = raw if unbuffered else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
