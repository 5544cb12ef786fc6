"""Upstream's real trainer on the hidden states of a real, watched vLLM; to be disturbed."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes.servers import ServerPool
from recipes.vllm.mooncake import Store
from recipes.vllm.process import ServerProcess, WarmPool, shared_pool
from recipes.vllm.progress import Limits
from recipes.vllm.watch import Watch, Watcher
from recipes.vllm_server import Endpoint, Server, ServerSpec
from tests.e2e import tiny_body

LIMITS = Limits(poll_s=0.25, quiet_s=2.0, stall_s=10.0, silent_s=12.0, restart_s=120.0)
ROWS, EPOCHS = 32, 1
PATIENCE_S = 240  # only bounds a test that fails


class Place:
    """A body, rows for it, and a pool of warm processes; made once for several tests."""

    def __init__(self, folder: Path, rows: int = ROWS) -> None:
        self.folder = folder
        self.pool: WarmPool = shared_pool(folder)
        self.body = tiny_body.body(folder / "body")
        self.data = tiny_body.rows(folder / "data", rows)

    @contextmanager
    def producer(
        self,
        states: Path,
        say: Callable[[str], None] = print,
        name: str = "extraction",
        store: Store | None = None,
    ) -> Iterator[Producer]:
        """A watched server that leaves hidden states in `states`, or in `store` if there is one."""
        spec = ServerSpec(
            name, str(self.body), dtype="bfloat16", max_model_len=256,
            extraction_layers=(*tiny_body.TARGETS, tiny_body.LAYERS),
            extraction_folder=None if store else states, extraction_store=store,
        )  # fmt: skip
        logs = self.folder / f"logs-{states.name}"
        with ServerPool(logs, lambda _: None) as servers:
            watch = Watch(LIMITS, say, request_s=120)
            with servers.lease(spec, watch=watch) as endpoint:
                name = spec.name
                yield Producer(endpoint, servers._running[name], servers._watchers[name], states)

    def training(
        self,
        name: str,
        endpoint: Endpoint | tuple[Endpoint, ...],
        *flags: str,
        store: Store | None = None,
    ) -> Training:
        return Training(self, name, endpoint, flags, store)


class Producer:
    """What tests need of a watched server."""

    def __init__(self, endpoint: Endpoint, server: Server, watcher: Watcher, states: Path) -> None:
        self.endpoint, self.server, self.watcher, self.states = endpoint, server, watcher, states

    def prompts(self) -> float:
        """Tokens read since it started; 0 while it does not answer."""
        try:
            return self.endpoint.counters().prompt_tokens
        except Exception:  # noqa: BLE001  (killed just now)
            return 0.0

    def wait_for_rows(self, count: int, training: Training) -> None:
        """Returns when about so many more rows have been asked for."""
        before = self.prompts()
        wait_until(lambda: self.prompts() - before >= count * tiny_body.ROW, training)

    def wait_for_restarts(self, count: int, training: Training | None = None) -> None:
        wait_until(lambda: self.watcher.restarts >= count and not self.watcher._doing, training)
        self.watcher.check()


class Training:
    """One run of upstream's trainer in a fork of the warm pool; the same command each time."""

    def __init__(
        self,
        place: Place,
        name: str,
        endpoint: Endpoint | tuple[Endpoint, ...],
        flags: tuple[str, ...],
        store: Store | None = None,
    ) -> None:
        endpoints = endpoint if isinstance(endpoint, tuple) else (endpoint,)
        urls = ",".join(f"{one.base_url}/v1" for one in endpoints)
        self.place, self.out = place, place.folder / name
        self.log = place.folder / f"{name}.log"
        self._arguments = [
            "--verifier-name-or-path", str(place.body), "--data-path", str(place.data),
            "--save-path", str(self.out), "--log-dir", str(place.folder / f"{name}-logs"),
            "--speculator-type", "eagle3", "--target-layer-ids", *map(str, tiny_body.TARGETS),
            "--total-seq-len", "48", "--epochs", str(EPOCHS), "--ttt-steps", "2",
            "--num-workers", "0", "--seed", "0", "--loss-implementation", "eager",
            "--draft-attn-impl", "sdpa", "--on-missing", "generate",
            "--vllm-endpoint", urls, "--request-timeout", "60",
            *(store.trainer_flags() if store else ()), *flags,
        ]  # fmt: skip
        self.process: ServerProcess | None = None

    def start(self) -> None:
        environment = {"COLUMNS": "1000", "PYTHONUNBUFFERED": "1"}
        self.process = self.place.pool.start(
            self._arguments, environment, self.log.absolute(), 1, "speculators.train"
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Its processes stand still for the block."""
        assert self.process is not None
        pids = self.process.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def wait(self) -> int:
        """Its exit code."""
        assert self.process is not None
        until = time.monotonic() + PATIENCE_S
        while (code := self.process.poll()) is None:
            assert time.monotonic() < until, self.said()[-3000:]
            time.sleep(0.05)
        return code

    def finish(self) -> int:
        self.start()
        return self.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def steps(self) -> int:
        """Training steps that it has logged."""
        return self.said().count("train/loss=")

    def drafter(self) -> str:
        """SHA-256 of the weights that came out."""
        path = self.out / str(EPOCHS - 1) / "model.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest()


def wait_until(happened: Callable[[], Any], training: Training | None = None) -> None:
    """Polls; fails if the training ends first or nothing happens."""
    until = time.monotonic() + PATIENCE_S
    while not happened():
        said = "" if training is None else training.said()[-3000:]
        assert time.monotonic() < until, f"it never happened: {said}"
        if training is not None and training.process is not None:
            assert training.process.poll() is None, f"the training ended first: {said}"
        time.sleep(0.03)
