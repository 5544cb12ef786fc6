"""Signals that end a run, and worker processes that must not end before it.

The first SIGINT, SIGTERM or SIGHUP is noted and acted on between two steps, where weights,
optimizers and the data position agree; while the process only waits for a batch it is acted on at
once. A second SIGINT leaves at once: what is committed stays, what was being written is swept by
the next run.

DataLoader workers are started with these signals blocked. A signal to the whole process group
(scancel, systemd, Ctrl+C) would otherwise kill them first, and torch turns a dead worker into an
exception at a random point of the main process, in the middle of an optimizer step or of a save.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

logger = logging.getLogger("speculators")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# torchrun hands Ctrl+C on to ranks that the terminal has already told.
_TORCHRUN_REPEATS_S = 3.0


class Interrupted(BaseException):
    """A signal ended the run. Not an `Exception`: no retry guard may catch it.

    Attributes:
        number: the signal's number; the exit code is 128 + number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Handlers for the time of one training; use as a context manager on the main thread."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0
        self._waiting = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # nohup: a hang-up that the user chose to ignore stays ignored.
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, a signal raises `Interrupted` where it arrives instead of being noted."""
        self._waiting = True
        try:
            if self.received is not None:
                raise Interrupted(self.received)
            yield
        finally:
            self._waiting = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._at = number, time.monotonic()
            # Not through `logging`: its lock may be held by the code that was interrupted.
            text = (
                f"\nspeculators_patches: {signal.Signals(number).name}: saving a checkpoint and "
                "ending; Ctrl+C again leaves at once\n"
            )
            with contextlib.suppress(OSError):  # the terminal that hung up, a closed pipe
                os.write(2, text.encode())
            if self._waiting:
                self._waiting = False
                raise Interrupted(number)
        elif number == signal.SIGINT:
            repeated = "TORCHELASTIC_RUN_ID" in os.environ
            if not repeated or time.monotonic() - self._at > _TORCHRUN_REPEATS_S:
                os._exit(128 + number)


@contextlib.contextmanager
def blocked_in_children() -> Iterator[None]:
    """Processes and threads started inside never see SIGINT, SIGTERM or SIGHUP."""
    # Spawning starts this helper if it does not run yet, and that would unblock the signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_workers(iterator: Any) -> None:
    """Ends the workers of a DataLoader's iterator (or None) at once.

    They are only readers. Left alone they would be asked with SIGTERM, which they do not see, and
    one that waits for vLLM would keep the process alive for minutes.
    """
    workers = getattr(iterator, "_workers", None)
    if not workers or not iterator._worker_pids_set:
        return  # none, or ended before
    import torch

    # From here on a worker's death is no error.
    torch._C._remove_worker_pids(id(iterator))
    iterator._worker_pids_set = False
    iterator._shutdown = True  # nothing is left for torch's own, polite shutdown to do
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=5)
    for queue in getattr(iterator, "_index_queues", ()):
        queue.cancel_join_thread()
