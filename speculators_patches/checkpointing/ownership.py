"""One writer a store: a lock that dies with its process, and a record of who that was.

A POSIX record lock (`fcntl.lockf`) rather than `flock`: the kernel drops it when the process dies,
however it dies, and forked DataLoader workers that outlive it do not inherit it. While it is held
no other live process stages anything in the store, so every staging folder found is a dead one's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path

from speculators_patches.checkpointing.errors import StoreBusyError

LOCK = "LOCK"

# A record lock does not exclude its own process, and closing any descriptor of the file drops it.
_held_here: set[tuple[int, Path]] = set()


def origin() -> dict[str, str | int]:
    """Who writes: host, pid, boot id (Linux; else empty) and UTC time."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "boot_id": boot,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


class WriterLock:
    """Exclusive right to write into the store at `root`.

    Attributes:
        exclusive: False if the file system has no locks: then nothing left over is ever swept,
            because its owner can't be shown to be dead.

    Raises:
        StoreBusyError: a live process (named) holds it.
    """

    def __init__(self, root: Path):
        self._root = root.resolve()
        self._descriptor = -1
        self.exclusive = True
        key = (os.getpid(), self._root)
        if key in _held_here:
            raise StoreBusyError(f"{root} is already being written by this process")
        descriptor = os.open(root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                holder = os.pread(descriptor, 4096, 0)
                os.close(descriptor)
                raise StoreBusyError(
                    f"{root} is being written by another process ({_describe(holder)}); "
                    "wait for it to end, or give this run another save folder"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                os.close(descriptor)
                raise
            self.exclusive = False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(origin()).encode(), 0)
        self._descriptor = descriptor
        _held_here.add(key)

    def release(self) -> None:
        """Let go; the LOCK file itself stays (removing it would race with the next writer)."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            _held_here.discard((os.getpid(), self._root))


def _describe(holder: bytes) -> str:
    try:
        record = json.loads(holder)
        return f"pid {record['pid']} on {record['host']}, since {record['time']}"
    except (ValueError, KeyError, TypeError):
        return "unknown"
