"""Host memory that a step's tensors are copied into: allocated once, pinned for an accelerator.

The copies are queued on the accelerator's current stream, so they read the tensors before any later
step changes them, and the training thread does not wait; the writer thread waits for the event.
On the CPU what the caller says will not change for a while is copied later, by whoever comes first:
the writer thread, or the training thread before it changes it (`Filled.settle`). All else is copied
when `copy_in` returns.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Mapping

import numpy
import torch

from speculators_patches.checkpointing import tensorfile
from speculators_patches.checkpointing.errors import CheckpointError

log = logging.getLogger(__name__)


# Bytes up to which this thread copies a tensor in host memory by itself. torch would share it out
# over its thread pool; on a busy machine each such call waits until every thread had its turn.
ALONE = 8 * 2**20


class Filled:
    """One state in the arena: a safetensors file's header and data, as they will be on disk."""

    def __init__(
        self,
        head: bytes,
        data: torch.Tensor,
        views: Mapping[str, torch.Tensor],
        event: torch.Event | None,
        later: Mapping[str, torch.Tensor],
    ):
        self._head = head
        self._data = data
        self._views = views
        self._event = event
        self._later = {name: (source, source._version) for name, source in later.items()}
        self._lock = threading.Lock()
        self._changed = ""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._head) + self._data.numel()

    def chunks(self) -> list[bytes | memoryview]:
        """The file's bytes; waits until the copies are done. Call it from the writer thread."""
        self._wait()
        return [self._head, self._data.numpy().data]

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Name -> the copy in host memory; waits as `chunks`."""
        self._wait()
        return self._views

    def settle(self) -> None:
        """Copy what was left for later; after it the live tensors may change. From any thread."""
        with self._lock, torch.no_grad():
            for name, (source, version) in self._later.items():
                _copy(self._views[name], source)
                if source._version != version:
                    self._changed = name
            self._later = {}

    def _wait(self) -> None:
        self.settle()
        if self._changed:
            raise CheckpointError(f"{self._changed!r} changed while it was being copied")
        if self._event is not None:
            self._event.synchronize()


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    on_host = source.device.type == "cpu" and source.is_contiguous()
    if on_host and target.numel() * target.element_size() < ALONE:
        to, what = (one.reshape(-1).view(torch.uint8).numpy() for one in (target, source))
        numpy.copyto(to, what)
    else:
        target.copy_(source, non_blocking=True)


def _needs(tensors: Mapping[str, torch.Tensor]) -> tuple[int, torch.device | None]:
    """Bytes, and the accelerator that some of the tensors are on."""
    device = next((t.device for t in tensors.values() if t.device.type != "cpu"), None)
    return sum(t.numel() * t.element_size() for t in tensors.values()), device


class Arena:
    """Reusable host memory, one state at a time; grows when a state does not fit."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._registered = False
        self._preparing: threading.Thread | None = None

    def prepare(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Get memory for such a state ready, beside the training (pinning 1.2 GB takes 0.35 s)."""
        size, device = _needs(tensors)

        def reserve() -> None:
            if device is not None and device.type == "cuda":
                torch.cuda.set_device(device)  # per thread
            self._reserve(size, device)

        self._join()
        self._preparing = threading.Thread(target=reserve, name="checkpoint-memory", daemon=True)
        self._preparing.start()

    def _join(self) -> None:
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None

    def copy_in(self, tensors: Mapping[str, torch.Tensor], later: Collection[str] = ()) -> Filled:
        """Copy `tensors` (any devices, any strides; dtype kept) in file order.

        The caller must have finished with what `copy_in` returned before.

        Args:
            later: names that will not change before the caller calls `Filled.settle`; of those in
                host memory the copy is left for then.
        """
        names = tensorfile.order(tensors)
        head = tensorfile.header(names, tensors)
        total, device = _needs(tensors)
        self._join()
        self._reserve(total, device)
        offset = 0
        views, left = {}, {}
        with torch.no_grad():
            for name in names:
                source = tensors[name].detach()
                end = offset + source.numel() * source.element_size()
                views[name] = self._memory[offset:end].view(source.dtype).view(source.shape)
                if name in later and source.device.type == "cpu" and not source.is_inference():
                    left[name] = source
                else:
                    _copy(views[name], source)
                offset = end
        event = None
        if device is not None:
            event = torch.Event(device.type)
            event.record()
        return Filled(head, self._memory[:total], views, event, left)

    def _reserve(self, size: int, device: torch.device | None) -> None:
        if self._memory.numel() >= size:
            return
        self._free()
        if device is None:
            self._memory = torch.empty(size, dtype=torch.uint8)
            # Touch every page now: the first save should not pay for them.
            self._memory.zero_()
        elif device.type == "cuda":
            # torch's own pinned allocator rounds up to a power of two (1.2 GB would cost 2 GB).
            memory = torch.empty(size, dtype=torch.uint8)
            status = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), size, 0)
            self._registered = int(status) == 0
            self._memory = memory if self._registered else _pinned(size)
        else:
            self._memory = _pinned(size)

    def release(self) -> None:
        """Give the memory back."""
        self._join()
        self._free()

    def _free(self) -> None:
        if self._registered:
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self._memory.data_ptr())
            self._registered = False
        self._memory = torch.empty(0, dtype=torch.uint8)


def _pinned(size: int) -> torch.Tensor:
    """Pinned memory; where there is none to be had, ordinary memory, which is only slower."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        log.warning(
            "%.0f MB of host memory for checkpoints can't be pinned (%s): saves stop training "
            "for longer",
            size / 1e6,
            str(error).splitlines()[0],
        )
        return torch.empty(size, dtype=torch.uint8)
