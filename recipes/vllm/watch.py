"""Watches a vLLM that a stage has leased and replaces it when it fails.

    watcher = Watcher(server, Watch(Limits(), say=print), incidents=run / "logs" / "incidents")
    watcher.start()
    ...
    watcher.check()     # raises once it could not be brought back
    watcher.stop()

A server that died, does not answer, answers errors, or makes no progress while a request waits
(see `progress`) is recorded (`incidents`), killed by its own pids and started again on the SAME
port, so that the address that its clients were given stays right. They see a server that is gone
for a while; the patch `wait_for_producer` makes the trainer wait for it. A port that somebody else
has taken in between is said and waited for.

The watcher also sweeps what aborted requests left in the folder of hidden states (`leftovers`) and
has one line to show of health, speed, memory and disk.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from recipes.vllm import incidents, leftovers, probes, processes
from recipes.vllm.errors import ServerError
from recipes.vllm.observe import Observer
from recipes.vllm.progress import Limits, Seen, Snapshot, Verdict, is_canary_due, see, verdict

if TYPE_CHECKING:
    from recipes.vllm_server import Server

_SLOW_LOOKS_S = 15.0  # between looks at memory and disk
_REMEMBERED = 40  # snapshots kept for an incident's file
_START_PAUSE_S = 2.0  # between attempts to start it again


@dataclass(frozen=True)
class Watch:
    """How a server is watched.

    Attributes:
        limits: when it counts as failed.
        say: called with one sentence for each incident, from the watcher's thread.
        request_s: the longest that a request and the reading of its file may take; files of
            hidden states older than that are swept.
    """

    limits: Limits = field(default_factory=Limits)
    say: Callable[[str], None] = print
    request_s: float = 300.0


class Watcher:
    """One thread that watches one server.

    Args:
        server: started and ready.
        watch: the limits.
        incidents: folder for what is found out about a failed server.
    """

    def __init__(self, server: Server, watch: Watch, incidents: Path) -> None:
        self._server, self._watch, self._incidents = server, watch, incidents
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._failure: BaseException | None = None
        self._restarts: list[float] = []
        self._doing = ""
        self._snapshots: deque[Snapshot] = deque(maxlen=_REMEMBERED)
        self._memory = 0
        self._disk: leftovers.DiskUse | None = None
        self._swept = 0

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return len(self._restarts)

    def start(self) -> None:
        """Begins watching."""
        self._thread.start()

    def stop(self) -> None:
        """Ends watching; returns when the thread no longer touches the server."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def check(self) -> None:
        """Raises what ended the watch: the server could not be brought back.

        Raises:
            ServerError: with one sentence of advice.
        """
        if self._failure is not None:
            raise self._failure

    def status(self) -> str:
        """One line for a display: what it does, memory, disk, restarts."""
        parts = [self._doing or self._speed()]
        if self._memory:
            parts.append(leftovers.size(self._memory) + " memory")
        if self._disk is not None:
            parts.append(f"hidden states {self._disk}")
        if self._swept:
            parts.append(f"{self._swept} left-over files swept")
        if self._restarts:
            parts.append(f"started again {len(self._restarts)} times")
        return ", ".join(parts)

    def _speed(self) -> str:
        # Copied in one go: the watcher's thread may append while this one looks.
        known = [one for one in tuple(self._snapshots) if one.work is not None]
        if len(known) < 2 or known[-1].at <= known[0].at:
            return "vLLM is up"
        rate = (known[-1].work or 0) - (known[0].work or 0)
        return f"vLLM {rate / (known[-1].at - known[0].at):.0f} tokens/s, {known[-1].waiting} asked"

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001  (whatever it is, `check` must tell it)
            self._failure = error

    def _loop(self) -> None:
        limits = self._watch.limits
        observer, seen = self._observer(), Seen()
        next_slow_look = 0.0
        try:
            while not self._ended.wait(limits.poll_s):
                snapshot = observer.look(self._server.exit_code())
                self._snapshots.append(snapshot)
                seen = see(seen, snapshot, limits)
                found = verdict(seen, limits)
                if not found.is_fine:
                    observer.close()
                    self._replace(found)
                    observer, seen = self._observer(), Seen()
                elif is_canary_due(seen, limits):
                    observer.send_canary(limits.stall_s + limits.silent_s)
                if time.monotonic() >= next_slow_look:
                    next_slow_look = time.monotonic() + _SLOW_LOOKS_S
                    self._look_slowly()
        finally:
            observer.close()

    def _observer(self) -> Observer:
        spec = self._server.spec
        whole_row = spec.extraction_layers and spec.max_model_len
        tokens = (spec.max_model_len or 5) - 1 if whole_row else 4
        stores = spec.extraction_store is not None
        return Observer(self._server.base_url, spec.model_name, tokens, stores=stores)

    def _look_slowly(self) -> None:
        self._memory = processes.memory(self._server.pids())
        folder = self._server.spec.extraction_folder
        if folder is not None:
            self._swept += leftovers.sweep(folder, self._watch.request_s)
            self._disk = leftovers.use(folder)

    # ---- replacing it ----

    def _replace(self, found: Verdict) -> None:
        """Records, kills and starts the server again.

        Raises:
            ServerError: it does not come back in time, or has failed too often.
        """
        name, limits = self._server.spec.name, self._watch.limits
        deadline = time.monotonic() + limits.restart_s
        self._doing = f"vLLM {found.what}: being replaced"
        record = self._take_down(found.what)
        recent = [at for at in self._restarts if at > time.monotonic() - 3600]
        if len(recent) >= limits.restarts:
            raise ServerError(
                f"vLLM server {name} {found.what}, after {len(recent)} restarts within an hour; "
                f"mend what is wrong with it ({record}, and the others beside it), then run the "
                "same command again: it goes on where training stopped.",
                self._server.log,
            )
        self._watch.say(
            f"server {name} {found.what}; it is started again on port {self._server.spec.port} "
            f"(what was found: {record})"
        )
        began = time.monotonic()
        self._restarts.append(began)
        self._bring_up(deadline, record)
        if not self._ended.is_set():
            self._watch.say(f"server {name} is back after {time.monotonic() - began:.0f} s")
        self._doing = ""
        self._snapshots.clear()

    def _take_down(self, what: str) -> Path:
        pids = self._server.pids()
        try:
            return incidents.capture(
                self._incidents, self._server.spec.name, what, pids, self._server.log,
                list(self._snapshots),
            )  # fmt: skip
        except OSError as error:  # a full disk must not keep the server from being replaced
            self._watch.say(f"what was found could not be written down: {error}")
            return self._server.log
        finally:
            processes.send(signal.SIGKILL, self._server.pids())
            self._server.stop()

    def _bring_up(self, deadline: float, record: Path) -> None:
        said = ""
        while not self._ended.is_set():
            try:
                self._server.start_again()
                self._wait_until_healthy(deadline)
                if not self._ended.is_set():
                    self._server.wait_ready(self._watch.limits.restart_s)
                return
            except (ServerError, OSError, ValueError, KeyError) as found:
                error = found if isinstance(found, ServerError) else ServerError(
                    f"vLLM server {self._server.spec.name} could not be started: {found!r}.",
                    self._server.log,
                )  # fmt: skip
                self._server.stop()
                if time.monotonic() >= deadline:
                    raise ServerError(
                        f"vLLM server {self._server.spec.name} could not be started again within "
                        f"{self._watch.limits.restart_s / 60:g} minutes: {error.sentence} "
                        f"(what happened first: {record}). Run the same command again when that "
                        "is mended; training goes on where it stopped.",
                        self._server.log,
                    ) from None
                if error.sentence != said:
                    said = error.sentence
                    self._watch.say(f"{said} Trying again.")
            self._ended.wait(_START_PAUSE_S)

    def _wait_until_healthy(self, deadline: float) -> None:
        """Returns when `/health` is good or the watch has ended.

        Raises:
            ServerError: it ended, or the time is over.
        """
        with probes.client_for(self._server.base_url) as client:
            while not self._ended.wait(0.2):
                self._server.check()
                if probes.healthy(client):
                    return
                if time.monotonic() >= deadline:
                    raise ServerError("it did not become ready.", self._server.log)
