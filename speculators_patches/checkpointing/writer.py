"""One background thread that writes, one job at a time, and tells the training thread how it went.

A daemon thread: a disk that never answers must not keep the process alive; what it leaves behind is
a staging folder, swept by the next run.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speculators_patches.checkpointing.errors import CheckpointError


@dataclass(frozen=True)
class Outcome:
    """How one job ended: `result`, or `error`. `seconds` of background time."""

    label: str
    seconds: float
    result: Any = None
    error: Exception | None = None


class Writer:
    """Runs jobs in the order submitted; refuses one while another is under way."""

    def __init__(self, name: str = "checkpoint-writer"):
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread: threading.Thread | None = None
        self._label = ""
        self._since = 0.0

    @property
    def busy(self) -> bool:
        return not self._idle.is_set()

    @property
    def under_way(self) -> tuple[str, float] | None:
        """Label and seconds so far of the job under way."""
        return (self._label, time.monotonic() - self._since) if self.busy else None

    def submit(self, label: str, job: Callable[[], Any]) -> None:
        """Hand over a job; returns at once.

        Raises:
            CheckpointError: one is under way.
        """
        if self.busy:
            raise CheckpointError(f"{self._label} is still being written")
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._label, self._since = label, time.monotonic()
        self._idle.clear()
        self._jobs.put((label, job))

    def outcomes(self) -> list[Outcome]:
        """How jobs ended since the last call."""
        ended: list[Outcome] = []
        while not self._outcomes.empty():
            ended.append(self._outcomes.get())
        return ended

    def flush(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; False if it took longer."""
        return self._idle.wait(timeout_s)

    def close(self, timeout_s: float) -> bool:
        """`flush`, and end the thread."""
        done = self.flush(timeout_s)
        if done and self._thread is not None:
            self._jobs.put(None)
            self._thread.join(timeout_s)
            self._thread = None
        return done

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            label, job = item
            started = time.monotonic()
            try:
                result = job()
            except Exception as error:  # noqa: BLE001 - whatever it was, the run must hear of it
                outcome = Outcome(label, time.monotonic() - started, error=error)
            else:
                outcome = Outcome(label, time.monotonic() - started, result=result)
            self._outcomes.put(outcome)
            self._idle.set()
