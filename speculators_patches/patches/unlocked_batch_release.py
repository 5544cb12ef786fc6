"""What a worker's batch lay in is given back to the system without Python's lock.

A DataLoader's worker hands a batch over in shared memory, and a thread of the trainer copies it to
pinned memory. The shared memory is freed when its last tensor goes, which is in that thread and
with the lock held (pytorch #77139 and #91353, open): 92 MB a step for EAGLE-3 on Gemma 4 26B-A4B,
for whose pages the trainer's own Python stands still. torch lets a batch pin itself
(`hasattr(batch, "pin_memory")`, before it looks for mappings; read in torch 2.11 and 2.13). Here it
is a dict that does, and that then

- takes the pages out of this process's tables (madvise) and
- keeps the file that they lie in open until nothing maps it, and closes it,

both of which take as long as ever, but hold no lock. No content is written: whoever else maps the
same memory still reads it. Without workers, or where torch shares by name (macOS), nothing is given
back early. Batches are bitwise the same.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_CALL = "speculators.train.data:CollateFn.__call__"

PATCH = Patch(
    name="unlocked_batch_release",
    defect="After each batch of a DataLoader worker the trainer's Python stands still while its "
    "shared memory is freed.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.data",
            "CollateFn.__call__",
            fingerprints={">=0.8.1,<0.9.1": "8704470327a5831b"},
        ),
    ),
    upstream="https://github.com/pytorch/pytorch/issues/77139",
    fixed_in=None,
    remove_when="torch unmaps shared memory without holding Python's lock",
    proof="tests/faults/test_unlocked_batch_release.py::test_no_page_is_freed_with_the_lock_held",
    tested=("0.8.1", "0.9.0"),
)

_call: Any = None


class Batch(dict[str, Any]):
    """A packed batch that pins itself."""

    def pin_memory(self) -> Batch:
        """Its tensors in pinned memory; those that came from a worker are empty afterwards."""
        import torch
        from torch.utils.data._utils.pin_memory import pin_memory

        pinned = Batch((name, pin_memory(value)) for name, value in self.items())
        for name, value in self.items():
            if isinstance(value, torch.Tensor) and value is not pinned[name]:
                release(value)
        return pinned


def release(tensor: Any) -> None:
    """Empties a tensor that a worker sent, and frees its memory without Python's lock.

    Taking a large mapping out of the process and freeing the last reference to what it
    maps both take milliseconds, and destroying the tensor does both with the lock held.

    Args:
        tensor: in memory that processes share by a file descriptor; others are left
            alone, and so is one that torch lets nobody empty, or that comes when no
            descriptor is left.
    """
    import torch

    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    with suppress(OSError, RuntimeError), ExitStack() as last:
        storage = tensor.untyped_storage()
        if not storage.is_shared():
            return
        last.callback(os.close, os.dup(storage._share_fd_cpu_()[0]))
        ctypes.CDLL(None).madvise(  # if it fails, unmapping does it
            ctypes.c_void_p(storage.data_ptr()),
            ctypes.c_size_t(storage.nbytes()),
            mmap.MADV_DONTNEED,
        )
        del storage
        tensor.set_()


def call(self: Any, batch: Sequence[Any]) -> Batch:
    """Upstream's batch, as a `Batch`."""
    return Batch(_call(self, batch))


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _call
    _call = originals[_CALL]
    return {_CALL: call}
