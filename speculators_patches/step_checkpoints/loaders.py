"""A DataLoader that tells what happens around each batch.

Upstream's loops are left as they are; they iterate over this in place of their loader. Between two
batches a step is complete, its metrics are logged, and the next batch is not yet fetched: the only
moment at which weights, counters and random generators agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from speculators_patches.step_checkpoints import stopping


@dataclass(frozen=True)
class Events:
    """What to call, in this order; see `Watched.__iter__`."""

    started: Callable[[], None]
    before_fetch: Callable[[], None]
    waiting: Callable[[], AbstractContextManager[None]]
    after_batch: Callable[[], None]


class Watched:
    """`loader` with events; everything else is the loader's own."""

    def __init__(self, loader: Any, events: Events) -> None:
        self._loader = loader
        self._events = events
        self.iterator: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        import torch

        # Whether an iterator is made or used again (persistent workers), and so whether it draws
        # a seed, differs between a run and its resume: the generator is left as it was.
        generator = torch.get_rng_state()
        with stopping.blocked_in_children():
            self.iterator = iter(self._loader)
        torch.set_rng_state(generator)
        self._events.started()
        while True:
            self._events.before_fetch()
            with self._events.waiting():
                batch = next(self.iterator, _END)
            if batch is _END:
                return
            yield batch
            self._events.after_batch()

    def end_workers(self) -> None:
        """See `stopping.end_workers`."""
        stopping.end_workers(getattr(self._loader, "_iterator", None))
        stopping.end_workers(self.iterator)


_END = object()
