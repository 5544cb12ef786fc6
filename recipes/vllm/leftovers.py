"""Files of hidden states that nobody will fetch any more, and what the folder holds.

vLLM writes a file and a lock for every request, and the trainer removes them after reading. A
request that was aborted (a time-out, a killed trainer, a killed server) leaves them behind: at
22.5 KB a token for Gemma 4 26B, a night of time-outs fills a disk.

Removed is only what a producer wrote for a request, by its name, that is older than any request can
be, and whose lock nobody holds. Files that a reader has open stay readable to it (on another
machine that shares the folder perhaps not: `recipes.spread.refusals` has reads end in time).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

# <request id>.safetensors, its .lock, and the staging files of recipes.cpu_hidden_states. The
# trainer's own cache is called hs_<row>.safetensors.
# .tmp and six letters is what safetensors writes before it renames; the last form is what a trainer
# that was killed while it looked for room leaves.
_PRODUCED = re.compile(
    r"((?:chat)?cmpl-[\w-]+\.safetensors)(?:\.lock|\.\d+\.tmp)?|\.tmp\w{6}|\.room-\d+\.tmp"
)


def longest(request_timeout: float) -> float:
    """Seconds that a request and the reading of its file may take; older files are left over.

    Args:
        request_timeout: of the request, seconds.
    """
    return request_timeout + 60


@dataclass(frozen=True)
class DiskUse:
    """Of one folder: files of hidden states, their bytes, and bytes free on its disk."""

    files: int
    bytes: int
    free: int

    def __str__(self) -> str:
        return f"{self.files} files, {size(self.bytes)} ({size(self.free)} free)"


def use(folder: Path) -> DiskUse:
    """What the folder holds now, the trainer's cache included."""
    files = total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if ".safetensors" in entry.name:
                    files += 1
                    total += entry.stat().st_size
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        free = 0
    return DiskUse(files, total, free)


def sweep(folder: Path, older_than_s: float) -> int:
    """Removes what aborted requests left.

    Args:
        older_than_s: the longest that a request and the reading of its file take together.

    Returns:
        The number of files removed.
    """
    before = time.time() - older_than_s
    removed = 0
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            match = _PRODUCED.fullmatch(path.name)
            if match is None or (match[1] and _is_locked(path.with_name(match[1] + ".lock"))):
                continue
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < before:
                    path.unlink()
                    removed += 1
    return removed


def size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _is_locked(lock: Path) -> bool:
    """Whether a writer still holds the file's lock."""
    try:
        with lock.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
