"""Mooncake's master for one run: started, probed, watched, stopped.

    with Master(log=run / "logs" / "mooncake-master.log", host="127.0.0.1", say=print) as master:
        master.wait_ready()
        ... master.address ...
        master.check()      # raises once it could not be brought back

It keeps who has which sample, in memory and for this run only; samples lie in the producers' own
memory. A master that died or does not answer is started again on the same ports. What it knew is
gone then: producers connect anew by themselves, and readers ask again for what they were promised
(patch `mooncake_waits`).
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx

from recipes.vllm import mooncake, processes
from recipes.vllm.errors import ServerError
from recipes.vllm.mooncake_probe import probe
from recipes.vllm.process import GuardedProcess

_START_S = 30.0
_LOOK_S = 0.5
_ANSWER_S = 5.0
_SILENT_S = 15.0
_RESTARTS_AN_HOUR = 20


def master_command(address: str, metrics_port: int = 9003, folder: Path | None = None) -> list[str]:
    """The command line of a master at `address` (host:port). Pure: starts nothing.

    Args:
        folder: Mooncake's package; None: the command is found on the path.
    """
    host, _, port = address.rpartition(":")
    return [
        str(folder / "mooncake_master") if folder else "mooncake_master",
        "-rpc_address", host, "-rpc_port", port,
        "-metrics_host", host, "-metrics_port", str(metrics_port),
        # Pinned objects are never evicted; this keeps it from trying at 90 %.
        "-eviction_high_watermark_ratio", "1.0",
        "-default_kv_lease_ttl", f"{mooncake.LEASE_S:.0f}s",
        "-logtostderr", "-minloglevel", "1",
    ]  # fmt: skip


class Master:
    """One mooncake_master of ours.

    Args:
        log: file for its output; of earlier starts: `<log>.1`, `.2`, ...
        host: address to bind, by which producers and trainers reach it.
        port: of its RPC; 0 picks a free one.
        say: called with one sentence for each incident, from the watching thread.
        silent_s: a master that answers nothing for so long is started again.
    """

    def __init__(
        self,
        log: Path,
        host: str = "127.0.0.1",
        port: int = 0,
        say: Callable[[str], None] = print,
        silent_s: float = _SILENT_S,
    ) -> None:
        self._log, self._host, self._port, self._say = log, host, port, say
        self._metrics_port = 0
        self._silent_s = silent_s
        self._process: GuardedProcess | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: ServerError | None = None
        self.restarts: list[float] = []

    @property
    def address(self) -> str:
        """host:port, known once it was started."""
        return f"{self._host}:{self._port}"

    def pids(self) -> list[int]:
        """Its processes; [] while none runs."""
        return self._process.pids() if self._process is not None else []

    def start(self) -> None:
        """Begins the start, and the watch.

        Raises:
            ServerError: Mooncake is missing, or the port is busy.
        """
        if self._thread is not None:
            return
        mooncake.require()
        self._port = _free_port(self._host, self._port)
        self._metrics_port = _free_port(self._host, 0)
        self._run()
        self._thread = threading.Thread(target=self._watch, name="mooncake", daemon=True)

    def wait_ready(self) -> None:
        """Returns when 1 MB has gone into a store and out again.

        Raises:
            ServerError: it has not; it is stopped then.
        """
        self.start()
        try:
            deadline = time.monotonic() + _START_S
            while not self._answers():
                self._check_runs()
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"Mooncake's master did not answer within {_START_S:.0f} s; see its log.",
                        self._log,
                    )
                time.sleep(0.05)
            found = probe(self.address)
            if "error" in found:
                raise ServerError(
                    f"Mooncake's master at {self.address} runs, but {found['error']}; see its log.",
                    self._log,
                )
        except BaseException:
            self.stop()
            raise
        assert self._thread is not None
        if self._thread.ident is None:
            self._thread.start()

    def check(self) -> None:
        """Raises ServerError if it failed and could not be brought back."""
        if self._failure is not None:
            raise self._failure

    def status(self) -> str:
        """One line for a display: keys and memory in use."""
        with contextlib.suppress(httpx.HTTPError, IndexError):
            text = self._get("/metrics/summary").text
            memory, keys = (text.split(name, 1)[1] for name in ("Mem Storage: ", "Keys: "))
            again = f", started again {len(self.restarts)} times" if self.restarts else ""
            return f"Mooncake {memory.split(' |')[0]}, {keys.split()[0]} keys{again}"
        return "Mooncake does not answer"

    def keys(self) -> list[str]:
        """All keys that it knows.

        Raises:
            httpx.HTTPError: it does not answer.
        """
        return self._get("/get_all_keys").text.split()

    def stop(self) -> None:
        """Ends the watch and the master; safe to call twice or before a start."""
        self._ended.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()
        process, self._process = self._process, None
        if process is not None:
            process.stop(2.0)

    def __enter__(self) -> Master:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # ---- the process ----

    def _run(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._process = GuardedProcess(
            master_command(self.address, self._metrics_port, mooncake.require()),
            {},
            self._log.absolute(),
        )  # fmt: skip

    def _get(self, path: str) -> httpx.Response:
        url = f"http://{self._host}:{self._metrics_port}{path}"
        # Never through a proxy: it is ours.
        return httpx.get(url, timeout=_ANSWER_S, trust_env=False).raise_for_status()

    def _answers(self) -> bool:
        try:
            return bool(self._get("/health").json().get("service_ready"))
        except (httpx.HTTPError, ValueError):
            return False

    def _check_runs(self) -> None:
        code = self._process.poll() if self._process is not None else None
        if code is not None:
            tail = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise ServerError(
                f"Mooncake's master ended with code {code}"
                f"{f' ({tail[0][:200]})' if tail else ''}; see its log.",
                self._log,
            )

    # ---- the watch ----

    def _watch(self) -> None:
        answered = time.monotonic()
        while not self._ended.wait(_LOOK_S):
            dead = self._process is not None and self._process.poll() is not None
            if not dead and self._answers():
                answered = time.monotonic()
                continue
            if not dead and time.monotonic() - answered < self._silent_s:
                continue
            try:
                self._replace("ended" if dead else "does not answer")
            except ServerError as error:
                self._failure = error
                return
            answered = time.monotonic()

    def _replace(self, what: str) -> None:
        now = time.monotonic()
        self.restarts.append(now)
        if sum(at > now - 3600 for at in self.restarts) > _RESTARTS_AN_HOUR:
            raise ServerError(
                f"Mooncake's master {what}, after {_RESTARTS_AN_HOUR} restarts within an hour; see "
                "its log, then run the same command again: training goes on where it stopped.",
                self._log,
            )
        self._say(f"Mooncake's master {what}; it is started again at {self.address}")
        assert self._process is not None
        processes.send(signal.SIGKILL, self._process.pids())
        self._process.stop()
        number = 1
        while (kept := self._log.with_name(f"{self._log.name}.{number}")).exists():
            number += 1
        with contextlib.suppress(OSError):
            self._log.rename(kept)
        self._run()
        deadline = now + _START_S
        while not self._ended.wait(0.1) and not self._answers():
            if time.monotonic() > deadline:
                return  # the watch sees it again, and counts
        if not self._ended.is_set():
            self._say(f"Mooncake's master is back after {time.monotonic() - now:.1f} s")


def _free_port(host: str, port: int) -> int:
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((host, port))
        except OSError as error:
            raise ServerError(
                f"Port {port} on {host} cannot be used for Mooncake's master ({error.strerror}): "
                "choose another mooncake_port, or see that this is the machine that `hosts` "
                "names first."
            ) from None
        return int(found.getsockname()[1])
