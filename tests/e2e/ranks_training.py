"""Upstream's trainer as two gloo ranks under torchrun, started as the recipe starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from recipes.config import resolve
from recipes.spread import torchrun
from recipes.vllm.mooncake import Store
from recipes.vllm.process import GuardedProcess
from recipes.vllm_server import Endpoint
from speculators_patches.checkpointing import names, reading
from tests.e2e.watched_training import Place, Training

RANKS = 2
ROOT = Path(__file__).resolve().parents[2]


class Ranks(Training):
    """A Training whose processes are torchrun, its ranks and their workers."""

    def __init__(
        self,
        place: Place,
        name: str,
        endpoint: Endpoint | tuple[Endpoint, ...],
        flags: tuple[str, ...],
        store: Store | None = None,
        max_restarts: int = 1,
    ) -> None:
        super().__init__(place, name, endpoint, flags, store)
        settings = [f"trainers={RANKS}", f"max_restarts={max_restarts}"]
        self._recipe, _ = resolve("h100", None, settings)

    def start(self) -> None:
        one = [sys.executable, "-m", "speculators_patches", "run", "--module", "speculators.train"]
        self.process = GuardedProcess(
            torchrun.wrapped(self._recipe, [*one, "--", *self._arguments]),
            torchrun.environment(self._recipe)
            | {"COLUMNS": "1000", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            | {"PYTHONPATH": str(ROOT)},
            self.log.absolute(),
        )

    def stop(self) -> None:
        """Ends whatever is left of it."""
        if self.process is not None:
            self.process.stop()

    def kill_rank(self, rank: int) -> None:
        os.kill(dict(self._ranks())[rank], signal.SIGKILL)

    def commits(self) -> int:
        """Checkpoints that all ranks have committed."""
        return len(reading.records(self.out / names.STORE))

    def restarts(self) -> int:
        return torchrun.restarts(self.log)

    def _ranks(self) -> Iterator[tuple[int, int]]:
        """(rank, pid)"""
        assert self.process is not None
        for pid in self.process.pids():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                rank = [one for one in variables if one.startswith(b"LOCAL_RANK=")]
                # Workers have their rank's variables, but another command line.
                if rank and b"--save-path" in command:
                    yield int(rank[0].partition(b"=")[2]), pid
