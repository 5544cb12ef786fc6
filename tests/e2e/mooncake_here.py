"""Why Mooncake's tests are skipped here, and a store for those that are not."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from recipes.vllm import mooncake
from recipes.vllm.mooncake import Store
from recipes.vllm.mooncake_master import Master, master_command
from recipes.vllm.mooncake_probe import probe

WHY_NOT = mooncake.missing()
SEGMENT_GIB = 0.0625


@contextmanager
def started(logs: Path, **settings: float) -> Iterator[tuple[Master, Store]]:
    """A watched master and the store that it keeps."""
    with Master(logs / "mooncake-master.log") as master:
        master.wait_ready()
        yield master, Store(master.address, **({"segment_gib": SEGMENT_GIB} | settings))


class Unwatched:
    """A master as a user runs it."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.address, self._metrics = (f"127.0.0.1:{free_port()}" for _ in range(2))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        port = int(self._metrics.rpartition(":")[2])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                master_command(self.address, port, mooncake.require()), stdout=log, stderr=log
            )

    def is_known_to_producers(self) -> bool:
        """Whether one has put its sign of life."""
        try:
            url = f"http://{self._metrics}/get_all_keys"
            return "producer-" in httpx.get(url, timeout=5, trust_env=False).text
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def unwatched(logs: Path) -> Iterator[tuple[Unwatched, Store]]:
    """A master that nobody starts again, and its store."""
    master = Unwatched(logs / "mooncake-own.log")
    try:
        while "error" in probe(master.address):
            time.sleep(0.1)
        yield master, Store(master.address, segment_gib=SEGMENT_GIB)
    finally:
        master.kill()
