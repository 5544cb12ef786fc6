"""For `speculators/train/data.py`."""

import ctypes
import mmap
import os
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory


def _release_shared(tensor: torch.Tensor) -> None:
    """Empty a tensor that a worker sent, without freeing its memory under the GIL.

    Taking a large mapping out of the process and freeing the last reference to what it
    maps both take milliseconds, and destroying the tensor does both with the GIL held.
    ``madvise`` through ctypes and ``os.close`` do not hold it. Nothing is written:
    other processes that map the same memory still read it.
    """
    if torch.multiprocessing.get_sharing_strategy() != "file_descriptor":
        return
    # A tensor that cannot be emptied, or comes when no descriptor is left, is freed as
    # any other.
    with suppress(OSError, RuntimeError), ExitStack() as last:
        storage = tensor.untyped_storage()
        if not storage.is_shared():
            return
        last.callback(os.close, os.dup(storage._share_fd_cpu_()[0]))
        ctypes.CDLL(None).madvise(  # if it fails, unmapping does its work
            ctypes.c_void_p(storage.data_ptr()),
            ctypes.c_size_t(storage.nbytes()),
            mmap.MADV_DONTNEED,
        )
        del storage
        tensor.set_()


class PackedBatch(dict[str, Any]):
    """A packed batch that pins itself, which torch's loaders let it do."""

    def pin_memory(self) -> "PackedBatch":
        """Pin the tensors; those that came from a worker are empty afterwards."""
        pinned = PackedBatch((name, pin_memory(value)) for name, value in self.items())
        for name, value in self.items():
            if isinstance(value, torch.Tensor) and value is not pinned[name]:
                _release_shared(value)
        return pinned
