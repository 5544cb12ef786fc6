"""A server's process as its owner sees it: alone under a guard, or forked by a warm pool."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from recipes.vllm import processes
from recipes.vllm.errors import ServerError
from recipes.vllm.spec import HOME

GRACE_S = 15.0
_GUARD = Path(__file__).with_name("guard.py")


class ServerProcess(Protocol):
    """What `Server` needs of either kind."""

    def poll(self) -> int | None:
        """The exit code, 128 + n for signal n; None while it runs."""

    def pids(self) -> list[int]:
        """The server's processes, parents first; [] before it is started and after it has ended."""

    def stop(self, grace: float = GRACE_S) -> None:
        """Returns when the server and everything it started are gone."""


class GuardedProcess:
    """A command under `guard.py`."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._guard = subprocess.Popen(
            [sys.executable, "-I", str(_GUARD), str(GRACE_S), str(log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | dict(env),
            # A terminal's Ctrl+C must reach the owner only, who then stops its servers.
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """See ServerProcess."""
        return self._guard.poll()

    def pids(self) -> list[int]:
        """See ServerProcess."""
        return processes.tree(self._guard.pid)[1:]

    def stop(self, grace: float = GRACE_S) -> None:
        """See ServerProcess."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(GRACE_S + 5)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()


def pool_environment() -> dict[str, str]:
    """The environment of a `WarmPool`, which every server that it forks starts with.

    Without production's key: what a server has of its own says that (`spec.environment`), and the
    pool may outlive the moment at which the key was set.
    """
    paths = [str(HOME), os.environ.get("PYTHONPATH", "")]
    return {name: value for name, value in os.environ.items() if name != "VLLM_API_KEY"} | {
        "OMP_NUM_THREADS": "1",
        # Arrow's allocator starts a thread of its own otherwise.
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


class WarmPool:
    """Owns one `pool_main` process. Servers that it forks start in seconds; Linux and CPU only.

    Raises:
        ServerError: from any method, if the pool has ended.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self.ready_after: float | None = None  # seconds the imports took
        self._changed = threading.Condition()
        self._started: dict[int, int] = {}  # request -> pid
        self._ended: dict[int, int] = {}  # pid -> exit code
        self._requests = 0
        log.parent.mkdir(parents=True, exist_ok=True)
        run = ["-m", "speculators_patches", "run", "--only", "vllm_cpu_sampling"]
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *run, "--module", "recipes.vllm.pool_main", "--", str(log)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=pool_environment(),
                start_new_session=True,
            )
        threading.Thread(target=self._listen, name="warm-pool", daemon=True).start()

    @property
    def alive(self) -> bool:
        """False once the pool's process has ended."""
        return self._process.poll() is None

    def start(
        self,
        args: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        threads: int,
        module: str | None = None,
    ) -> PooledProcess:
        """Asks for a server, or for upstream's `module`; returns at once, even while importing."""
        with self._changed:
            self._requests += 1
            number = self._requests
        self._send(
            {"start": number, "args": list(args), "env": dict(env), "log": str(log),
             "threads": threads} | ({"module": module} if module else {})
        )  # fmt: skip
        return PooledProcess(self, number)

    def close(self) -> None:
        """Ends the pool and every server that it forked."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its servers are set to die with it
            self._process.wait()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise ServerError(
                "The process that forks vLLM servers has ended, so no server can be started.",
                self.log,
            ) from None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._changed:
                if "ready" in message:
                    self.ready_after = message["ready"]
                elif "started" in message:
                    self._started[message["started"]] = message["pid"]
                else:
                    self._ended[message["ended"]] = message["code"]
                self._changed.notify_all()
        self._process.wait()
        with self._changed:
            self._changed.notify_all()

    def _code_of(self, request: int) -> int | None:
        with self._changed:
            pid = self._started.get(request)
            code = self._ended.get(pid) if pid is not None else None
        if code is not None:
            return code if code >= 0 else 128 - code
        if not self.alive:
            raise ServerError(
                "The process that forks vLLM servers has ended, and its servers with it.", self.log
            )
        return None

    def _pids_of(self, request: int) -> list[int]:
        with self._changed:
            pid = self._started.get(request)
            over = pid is None or pid in self._ended
        return [] if pid is None or over else processes.tree(pid)

    def _stop(self, request: int, grace: float) -> None:
        deadline = time.monotonic() + grace + 5
        with self._changed:
            while request not in self._started and self.alive:
                self._changed.wait(0.2)
            pid = self._started.get(request)
        if pid is None or not self.alive:
            return
        with contextlib.suppress(ServerError):  # the pool and with it the server have just ended
            self._send({"stop": pid, "grace": grace})
        with self._changed:
            while pid not in self._ended and self.alive and time.monotonic() < deadline:
                self._changed.wait(0.2)


class PooledProcess:
    """A server that a WarmPool forked."""

    def __init__(self, pool: WarmPool, request: int) -> None:
        self._pool, self._request = pool, request

    def poll(self) -> int | None:
        """See ServerProcess."""
        return self._pool._code_of(self._request)

    def pids(self) -> list[int]:
        """See ServerProcess."""
        return self._pool._pids_of(self._request)

    def stop(self, grace: float = GRACE_S) -> None:
        """See ServerProcess."""
        self._pool._stop(self._request, grace)


_shared: WarmPool | None = None


def shared_pool(log_folder: Path) -> WarmPool:
    """This process's warm pool, started on the first call and ended when Python exits."""
    global _shared
    if _shared is None or not _shared.alive:
        _shared = WarmPool(log_folder / "vllm-pool.log")
        atexit.register(_shared.close)
    return _shared
