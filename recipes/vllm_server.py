"""A vLLM server for one stage: started, probed, stopped; or one that the user runs, probed.

    with Server(spec, log=run / "logs" / "vllm-body.log") as server:
        endpoint = server.wait_ready(say=print)
        ... endpoint.base_url, endpoint.model ...

Several servers may be started first and waited for later. On a CPU they are forked by a process
that has imported vLLM once (recipes/vllm/pool_main.py), because imports are most of a start.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import httpx

from recipes.vllm import drafting, probes
from recipes.vllm.errors import ServerError, cause_in_log, log_tail, port_was_taken
from recipes.vllm.metrics import SpecCounters, parse_counters, read_counters
from recipes.vllm.process import GuardedProcess, ServerProcess, WarmPool, shared_pool
from recipes.vllm.spec import (
    Installed,
    ServerSpec,
    arguments,
    command,
    eager,
    environment,
    installed,
    require_installed,
)

__all__ = [
    "Endpoint",
    "Installed",
    "Server",
    "ServerError",
    "ServerSpec",
    "SpecCounters",
    "WarmPool",
    "attach",
    "command",
    "installed",
    "log_tail",
    "parse_counters",
    "read_counters",
    "warm_pool",
]

Say = Callable[[str], None]

# How many ports are tried where any will do.
_PORTS_TRIED = 5
# What a line in vLLM's log says about how far a start has come, in order.
_MILESTONES = (
    ("Starting to load model", "loading weights"),
    ("Loading weights took", "preparing memory"),
    ("init engine", "opening"),
)


@dataclass(frozen=True)
class Endpoint:
    """A server that has answered every probe.

    Attributes:
        base_url: e.g. `http://127.0.0.1:8000`, without `/v1`.
        model: the name for requests.
        vllm: its version, "" if it does not tell.
        seconds: from its start to the last probe; 0 for one that we did not start.
    """

    base_url: str
    model: str
    vllm: str = ""
    seconds: float = 0.0

    def counters(self) -> SpecCounters:
        """A snapshot of its counters; subtract two of them."""
        return read_counters(self.base_url)


class Server:
    """One server that we start.

    Args:
        spec: what to start.
        log: file for its output, replaced if it exists.
        warm: fork it from this process's warm pool; None: on a CPU under Linux.
    """

    def __init__(self, spec: ServerSpec, log: Path, warm: bool | None = None) -> None:
        self.spec = spec
        self.log = log
        self._warm = warm
        self._process: ServerProcess | None = None
        self._vllm: Installed | None = None
        self._began = 0.0
        self._endpoint: Endpoint | None = None
        self._any_port = spec.port == 0

    def start(self) -> None:
        """Begins the start and returns at once.

        Raises:
            ServerError: vLLM is missing, the port is busy, or the model's folder is not a model.
        """
        if self._process is not None:
            return
        vllm = self._vllm = require_installed()
        _check_model(self.spec)
        self.spec = replace(self.spec, port=_port(self.spec))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.write_bytes(b"")
        if self.spec.extraction_folder is not None:
            self.spec.extraction_folder.mkdir(parents=True, exist_ok=True)
        env = environment(self.spec, vllm)
        self._began = time.monotonic()
        if self._is_warm(vllm):
            pool = shared_pool(self.log.parent)
            self._process = pool.start(
                arguments(self.spec, vllm), env, self.log.absolute(), self.spec.cpu_threads
            )
        else:
            self._process = GuardedProcess(command(self.spec, vllm), env, self.log.absolute())

    def wait_ready(self, timeout_s: float = 900.0, say: Say | None = None) -> Endpoint:
        """Returns when every probe that `spec` calls for has been answered.

        Args:
            timeout_s: seconds from the start until `/health` must answer.
            say: called with a short line whenever the start has come further.

        Raises:
            ServerError: it ended, did not come up in time, or failed a probe; it is stopped then.
        """
        if self._endpoint is not None:
            return self._endpoint
        self.start()
        for left in reversed(range(_PORTS_TRIED)):
            try:
                with probes.client_for(self.base_url) as client:
                    self._wait_for_health(client, timeout_s, say or _silent)
                    self._check_runner()
                    vllm = _probe(client, self.spec, say or _silent, sampling=self._on_cpu)
                self.check()  # what has answered was ours
                break
            except ServerError:
                self.stop()
                if not (left and self._any_port and port_was_taken(self.log)):
                    raise
                # It takes seconds until vLLM binds the port that was free.
                (say or _silent)(f"{self.spec.name}: port {self.spec.port} was taken, another one")
                self.spec = replace(self.spec, port=0)
                self.start()
            except BaseException:
                self.stop()
                raise
        self._any_port = False  # its clients are told this one
        seconds = time.monotonic() - self._began
        self._endpoint = Endpoint(self.base_url, self.spec.model_name, vllm, seconds)
        (say or _silent)(f"{self.spec.name}: ready after {seconds:.0f} s")
        return self._endpoint

    @property
    def base_url(self) -> str:
        """Its address, known once it was started."""
        return f"http://{self.spec.host}:{self.spec.port}"

    def check(self) -> None:
        """Raises ServerError if the server has ended although nobody stopped it."""
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            raise self._died(code)

    def exit_code(self) -> int | None:
        """None while it runs or before a start; 128 + n where signal n ended it."""
        try:
            return self._process.poll() if self._process is not None else None
        except ServerError:  # the warm pool has ended, and the server with it
            return 128 + signal.SIGKILL

    def pids(self) -> list[int]:
        """Its processes, parents first; [] while none runs."""
        return self._process.pids() if self._process is not None else []

    def start_again(self) -> None:
        """Stops it and starts it on the same port; the log so far becomes `<log>.1`, `.2`, ...

        Raises:
            ServerError: as `start`; the port may have been taken in between.
        """
        self.stop()
        number = 1
        while (kept := self.log.with_name(f"{self.log.name}.{number}")).exists():
            number += 1
        with contextlib.suppress(FileNotFoundError):
            self.log.rename(kept)
        self.start()

    def counters(self) -> SpecCounters:
        """A snapshot of its counters; subtract two of them."""
        self.check()
        return read_counters(self.base_url)

    def stop(self) -> None:
        """Ends it and every process it started; safe to call twice or before a start."""
        process, self._process, self._endpoint = self._process, None, None
        if process is not None:
            process.stop()

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def _on_cpu(self) -> bool:
        return self._vllm is not None and self._vllm.cpu

    def _is_warm(self, vllm: Installed) -> bool:
        possible = vllm.cpu and sys.platform == "linux" and eager(self.spec, vllm)
        return possible if self._warm is None else self._warm and possible

    def _wait_for_health(self, client: httpx.Client, timeout_s: float, say: Say) -> None:
        said = "starting"
        say(f"{self.spec.name}: {said}")
        while not probes.healthy(client):
            self.check()
            if time.monotonic() - self._began > timeout_s:
                raise ServerError(
                    f"vLLM server {self.spec.name} was not ready after {timeout_s:.0f} s (it was "
                    f"{said}); give it more time, or see why in its log.",
                    self.log,
                )
            now = _milestone(self.log, said)
            if now != said:
                said = now
                say(f"{self.spec.name}: {said}")
            time.sleep(0.1)

    def _check_runner(self) -> None:
        """Which model runner vLLM took is known from its log only, once it has started."""
        if self._vllm is not None and self._vllm.cpu:
            return  # always V1, which cpu_entry patches where that matters
        log = self.log.read_text(encoding="utf-8", errors="replace")
        lost = drafting.not_on_v2(self.spec.speculative_config, log)
        if lost is not None:
            raise ServerError(f"server {self.spec.name}: {lost}", self.log)

    def _died(self, code: int) -> ServerError:
        cause = cause_in_log(self.log)
        if cause is None and code == 128 + signal.SIGKILL:
            cause = "it was killed (SIGKILL), as Linux does when memory runs out; free some memory"
        what = "did not start" if self._endpoint is None else "ended while it was in use"
        return ServerError(
            f"vLLM server {self.spec.name} {what}: {cause or f'it ended with code {code}'}.",
            self.log,
        )


def attach(url: str, spec: ServerSpec, say: Say | None = None) -> Endpoint:
    """A server that the user runs, after the same probes as one of ours.

    Args:
        url: with or without `/v1`.
        spec: what it is expected to be: model, extraction layers, render.

    Raises:
        ServerError: it does not answer, or is not what `spec` says.
    """
    base_url = url.rstrip("/").removesuffix("/v1")
    with probes.client_for(base_url) as client:
        if not probes.healthy(client):
            raise ServerError(
                f"No vLLM server answers at {base_url}; start it, or leave the address out so "
                "that the recipe starts one."
            )
        vllm = _probe(client, spec, say or _silent, sampling=True)
    return Endpoint(base_url, spec.model_name, vllm)


def warm_pool(log_folder: Path) -> WarmPool | None:
    """Begins importing vLLM for the servers to come; returns at once. None where there is a GPU."""
    vllm = installed()
    if vllm is not None and vllm.cpu and sys.platform == "linux":
        return shared_pool(log_folder)
    return None


def _probe(client: httpx.Client, spec: ServerSpec, say: Say, *, sampling: bool) -> str:
    say(f"{spec.name}: checking the model's name")
    probes.model(client, spec)
    if spec.render:
        say(f"{spec.name}: checking /render")
        probes.render(client, spec)
    if spec.extraction_layers:
        say(f"{spec.name}: checking hidden states")
        probes.extraction(client, spec)
    if sampling:
        say(f"{spec.name}: checking an answer at T = 0.7")
        probes.sampling(client, spec)
    return probes.version(client)


def _silent(_: str) -> None:
    pass


def _milestone(log: Path, so_far: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        text = log.read_text(encoding="utf-8", errors="replace")
        for sign, phase in reversed(_MILESTONES):
            if sign in text:
                return phase
    return so_far


def _port(spec: ServerSpec) -> int:
    with socket.socket() as probe:
        # As servers do, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((spec.host, spec.port))
        except OSError as error:
            raise ServerError(
                f"Port {spec.port} on {spec.host} cannot be used for server {spec.name} "
                f"({error.strerror}); stop what uses it or choose another port "
                "(0 picks a free one)."
            ) from None
        return int(probe.getsockname()[1])


def _check_model(spec: ServerSpec) -> None:
    path = Path(spec.model)
    looks_local = path.is_absolute() or spec.model.startswith((".", "~")) or path.is_dir()
    if looks_local and not (path / "config.json").is_file():
        raise ServerError(
            f"{spec.model} is not a model that server {spec.name} could load: it has no "
            "config.json; check the path."
        )
