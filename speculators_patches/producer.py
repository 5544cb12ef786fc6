"""Waiting for the server that produces hidden states: is it up, has it been gone for too long?

One `Producer` a process (a trainer without workers, or a DataLoader worker) and data set. Nothing
here knows upstream; `patches/wait_for_producer` and `patches/durable_extraction` do.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

logger = logging.getLogger("speculators")

_HOW_LONG = "--producer-wait-minutes, or SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES,"
_HEALTH_S = 5.0
_CANARY_S = 60.0
_SAY_EVERY_S = 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 5.0
# Until a sample has been seen: Gemma 4 26B's four layers of 2816 in bf16 are 22.5 KB a token.
_BYTES_PER_TOKEN = 32_768


class Gone(BaseException):
    """The producer has been gone for too long. Not an `Exception`: no retry guard may catch it."""


class Producer:
    """The server at one address, as one process of a training sees it.

    Args:
        endpoint: with or without `/v1`.
        wait_s: how long it may be gone.
        what: who waits for it, for messages.
        goes_on: from where the same command would go on.
    """

    def __init__(
        self,
        endpoint: str,
        wait_s: float,
        *,
        what: str = "Training",
        goes_on: str = "from the checkpoint",
    ) -> None:
        self._what, self._goes_on = what, goes_on
        self.url = endpoint.rstrip("/").removesuffix("/v1")
        self.wait_s = wait_s
        self.gone: str | None = None  # the sentence, once it has been gone for too long
        self._since: float | None = None  # of the first failure without an answer after it
        self.has_answered = False
        self._said = 0.0  # when the log was last told of the wait
        self._bytes_per_token = _BYTES_PER_TOKEN

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses that samples are asked of."""
        return (self.url,)

    @property
    def asked(self) -> str:
        """The address of the last request."""
        return self.url

    def answers(self, url: str, prompt: Sequence[int], discard: Callable[[str], None]) -> bool:
        """Whether the server at `url`, one of `urls`, answers a request as long as `prompt` now."""
        return self.problem([prompt[0]] * len(prompt), discard) is None

    def answered(self, sample: dict[str, Any]) -> None:
        """Hidden states have been had; what went wrong before is over."""
        self.has_answered = True
        states = sample.get("hidden_states")
        if states is not None and len(states):
            self._bytes_per_token = max(1, states.numel() * states.element_size() // len(states))
        if self._since is not None:
            waited = time.monotonic() - self._since
            logger.warning(f"{self.url} gives hidden states again, {waited:.0f} s after it failed")
            self._since = None

    def wait(
        self,
        why: str,
        prompt: Sequence[int],
        folder: Path | None,
        discard: Callable[[str], None],
    ) -> None:
        """Returns when the server answers a request and there is room for the next file.

        Signals and the end of the parent process end the wait at once.

        Args:
            why: what went wrong with the last request, a clause.
            prompt: token ids of the sample asked for.
            folder: where the server leaves files; None: not known, or it uses none.
            discard: removes what the server stored under a handle.

        Raises:
            Gone: not within `wait_s` since the first failure.
        """
        for pause in self.pauses(why):
            time.sleep(pause)
            _end_with_parent()
            if self.is_back(why, prompt, folder, discard):
                return

    def pauses(self, why: str, *, quiet: bool = False) -> Iterator[float]:
        """Seconds to sleep before each look at a server that has just failed, without end.

        Args:
            quiet: nobody waits for it, since others are up.
        """
        if self._since is None:
            self._since = time.monotonic()
            if not quiet:
                logger.warning(
                    f"no hidden states from {self.url}: {why}. {self._what} waits for it, up to "
                    f"{self.wait_s / 60:g} minutes"
                )
        self._said = time.monotonic()
        # The first look is after a pause: what has just failed rarely answers at once.
        pause = _FIRST_PAUSE_S
        while True:
            yield pause
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)

    def is_back(
        self,
        why: str,
        prompt: Sequence[int],
        folder: Path | None,
        discard: Callable[[str], None],
    ) -> bool:
        """One look; arguments as of `wait`.

        Raises:
            Gone: not within `wait_s` since the first failure.
        """
        # As long as the sample: where memory for long prompts is stuck, short ones still pass.
        probe = [prompt[0]] * len(prompt)
        problem = self.has_no_room(prompt, folder) or self.problem(probe, discard)
        now = time.monotonic()
        since = self._since  # read once: the event loop's thread may take it away meanwhile
        if since is None:
            # Another request's answer was under way when this one failed: the wait begins with it.
            since = self._since = now
        # Whatever it answers to the probe: it is samples that have not come for so long.
        if now - since >= self.wait_s:
            self.gone = (
                f"no hidden states from {self.url} for {(now - since) / 60:.3g} minutes: "
                f"{problem or why}. Mend that, then run the same command again: it goes on "
                f"{self._goes_on}. {_HOW_LONG} sets how long to wait"
            )
            raise Gone(self.gone)
        if problem is not None and now - self._said >= _SAY_EVERY_S:
            self._said = now
            logger.warning(f"still waiting for {self.url}: {problem}")
        return problem is None

    def not_to_blame(self) -> None:
        """A sample was at fault: what went wrong was not the server's."""
        self._since = None

    def has_no_room(self, prompt: Sequence[int], folder: Path | None) -> str | None:
        """Why the hidden states of `prompt` have no room in `folder`, as a clause, or None."""
        return no_room(folder, int(len(prompt) * self._bytes_per_token * 1.1) + 4096)

    def problem(self, prompt: Sequence[int], discard: Callable[[str], None]) -> str | None:
        """Why the server cannot be asked now, as a clause; None if it has just answered."""
        try:
            with httpx.Client(base_url=self.url, trust_env=not _is_local(self.url)) as client:
                status = client.get("/health", timeout=_HEALTH_S).status_code
                if status != 200:
                    return f"/health answers {status}"
                model = client.get("/v1/models", timeout=_HEALTH_S).json()["data"][0]["id"]
                reply = client.post(
                    "/v1/completions",
                    json={"model": model, "prompt": list(prompt), "max_tokens": 1},
                    timeout=_CANARY_S,
                )
                if reply.status_code != 200:
                    return f"a request for a probe is answered {reply.status_code}"
                params = reply.json().get("kv_transfer_params") or {}
        except httpx.ConnectError:
            return "nothing accepts connections there"
        except httpx.TimeoutException:
            return "it accepts requests and does not answer"
        except httpx.HTTPError as error:
            return f"it breaks requests off ({type(error).__name__})"
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "what answers there is not vLLM"
        handle = params.get("hidden_states_path") or params.get("handle")
        if not handle:
            return "what answers there extracts no hidden states"
        with contextlib.suppress(Exception):  # the sweep of the folder finds it later
            discard(handle)
        return None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One suspect at a time on this machine.

        A request that was in flight when the server died is asked again by itself, so that one
        sample that kills servers cannot take the ones beside it down with it.
        """
        name = hashlib.sha256(self.url.encode()).hexdigest()[:12]
        path = Path(tempfile.gettempdir()) / f"speculators_patches-{os.getuid()}-{name}.lock"
        with contextlib.ExitStack() as held:
            try:
                lock = held.enter_context(path.open("a"))
            except OSError:  # no room for it: that is not the sample's fault
                yield
                return
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    _end_with_parent()
                    time.sleep(0.1)
            yield


def no_room(folder: Path | None, needed: int) -> str | None:
    """Why a file of `needed` bytes cannot be written into `folder`, as a clause; None if it can.

    The room is reserved for a moment, as quotas do not show in the free space of a disk.
    """
    if folder is None or not folder.is_dir():
        return None
    path = folder / f".room-{os.getpid()}.tmp"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, needed)
        finally:
            os.close(descriptor)
            path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):  # the server's own folder: it may, we not
            return None
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            return (
                f"there is no room for hidden states in {folder} ({os.strerror(error.errno or 0)}; "
                f"{needed / 1e6:.3g} MB needed, {free / 1e6:.3g} MB free): free some space"
            )
        return f"{folder} cannot be written to ({os.strerror(error.errno or 0)})"
    return None


def _end_with_parent() -> None:
    """A DataLoader worker that waits must not outlive the trainer."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit(1)


def _is_local(url: str) -> bool:
    host = httpx.URL(url).host
    return host in ("localhost", "::1") or host.startswith("127.")
