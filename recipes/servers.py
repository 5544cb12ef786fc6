"""The vLLM servers of one run: started when needed or ahead of time, always stopped at the end.

Starting a server takes half a minute, most of it imports. A stage that knows what the next one
needs may `prestart` it, so that it comes up while something else runs; `lease` then only waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from recipes.config import Recipe
from recipes.vllm import leftovers, probes
from recipes.vllm.errors import cause_in_log
from recipes.vllm.mooncake_master import Master
from recipes.vllm.progress import Limits
from recipes.vllm.watch import Watch, Watcher
from recipes.vllm_server import Endpoint, Server, ServerSpec, attach, command


class ServerPool:
    """Servers by what they are; leaving the `with` block stops every one of them."""

    def __init__(
        self,
        logs: Path,
        say: Callable[[str], None],
        start_timeout_s: float = 1800.0,
        record: Callable[[str, list[str]], None] | None = None,
        endpoint_wait_s: float = 0.0,
    ) -> None:
        self._logs = logs
        self._say = say
        self._start_timeout_s = start_timeout_s
        self._record = record
        # How long an endpoint may take to answer: on several machines others start them.
        self._endpoint_wait_s = endpoint_wait_s
        self._running: dict[str, Server] = {}
        self._watchers: dict[str, Watcher] = {}
        self._master: Master | None = None

    def prestart(self, *specs: ServerSpec) -> None:
        """Begin starting servers and return at once; already started ones are left alone."""
        for spec in specs:
            if spec.name not in self._running:
                server = Server(spec, log=self._logs / f"vllm-{spec.name}.log")
                server.start()
                self._running[spec.name] = server
                if self._record is not None:
                    self._record(spec.name, command(server.spec))

    @contextmanager
    def lease(
        self,
        spec: ServerSpec,
        endpoint: str = "",
        *,
        keep: bool = False,
        watch: Watch | None = None,
    ) -> Iterator[Endpoint]:
        """A ready server for the block; stopped after it unless `keep`.

        Args:
            endpoint: a server that the user runs; it is probed and used instead, never stopped.
            watch: replace the server if it fails while the block runs, on the same address; call
                `check_watched` now and then. None (a measurement): it is left alone.

        Raises:
            ServerError: it does not start, or it is not what `spec` describes.
        """
        if endpoint:
            self._await(endpoint)
            yield attach(endpoint, spec)
            return
        self.prestart(spec)
        server = self._running[spec.name]
        try:
            ready = server.wait_ready(self._start_timeout_s, say=self._say)
            if watch is not None:
                watcher = self._watchers[spec.name] = Watcher(
                    server, watch, self._logs / "incidents"
                )
                watcher.start()
            yield ready
        finally:
            if not keep:
                self.stop(spec.name)
            elif spec.name in self._watchers:
                self._watchers.pop(spec.name).stop()

    def _await(self, endpoint: str) -> None:
        until = time.monotonic() + self._endpoint_wait_s
        with probes.client_for(endpoint.rstrip("/").removesuffix("/v1")) as client:
            while not probes.healthy(client):
                left = until - time.monotonic()
                if left <= 0:
                    return  # attach says what is wrong
                self._say(f"waiting for {endpoint} ({left:.0f} s left)")
                time.sleep(min(2.0, left))

    @contextmanager
    def several(
        self, specs: list[ServerSpec], endpoints: tuple[str, ...] = (), watch: Watch | None = None
    ) -> Iterator[Endpoint]:
        """As `lease`, for servers that answer alike; `base_url` lists them, separated by commas.

        Args:
            endpoints: servers that the user runs; those of `specs` are not started then.
        """
        with ExitStack() as stack:
            if endpoints:
                pairs = [(specs[0], url) for url in endpoints]
            else:
                self.prestart(*specs)  # side by side
                pairs = [(spec, "") for spec in specs]
            ready = [stack.enter_context(self.lease(spec, url, watch=watch)) for spec, url in pairs]
            yield replace(ready[0], base_url=",".join(one.base_url for one in ready))

    @contextmanager
    def mooncake(self, host: str, port: int, say: Callable[[str], None]) -> Iterator[None]:
        """A Mooncake master for the block, watched as servers are.

        Raises:
            ServerError: it does not start.
        """
        with Master(self._logs / "mooncake-master.log", host, port, say) as self._master:
            try:
                self._master.wait_ready()
                yield
            finally:
                self._master = None

    def check(self, name: str) -> None:
        """Raises ServerError, with the cause from its log, if a started server has ended."""
        server = self._running.get(name)
        if server is not None:
            server.check()

    def cause(self, name: str) -> str | None:
        """What the log of a server says went wrong, as a clause; None where nothing is known."""
        return cause_in_log(self._logs / f"vllm-{name}.log")

    def check_watched(self) -> None:
        """Raises ServerError if a watched server failed and could not be brought back."""
        for watcher in self._watchers.values():
            watcher.check()
        if self._master is not None:
            self._master.check()

    def status(self) -> str:
        """What the watched servers do, on one line; "" if none is watched."""
        parts = [watcher.status() for watcher in self._watchers.values()]
        if self._master is not None:
            parts.append(self._master.status())
        return "; ".join(parts)

    def start_all(self, specs: list[ServerSpec]) -> None:
        """Start servers side by side and return when every one of them is ready."""
        self.prestart(*specs)
        for spec in specs:
            self._running[spec.name].wait_ready(self._start_timeout_s, say=self._say)

    def stop(self, *names: str) -> None:
        for name in names:
            watcher = self._watchers.pop(name, None)
            if watcher is not None:
                watcher.stop()
            server = self._running.pop(name, None)
            if server is not None:
                server.stop()

    def __enter__(self) -> ServerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(*list(self._running))


def watching(recipe: Recipe, say: Callable[[str], None]) -> Watch:
    """How a stage's server is watched.

    Args:
        say: gets one sentence for each incident, from another thread.
    """
    stall = recipe.producer_stall_seconds
    return Watch(
        Limits(
            quiet_s=min(20.0, stall / 4),
            stall_s=stall,
            silent_s=min(60.0, stall),
            restart_s=recipe.producer_wait_minutes * 60,
        ),
        say,
        request_s=leftovers.longest(recipe.request_timeout),
    )
