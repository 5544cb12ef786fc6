"""Taking snapshots of a server: its health, its counters, and a request of our own."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from recipes.vllm.hidden_state_files import discard_when_written
from recipes.vllm.probes import client_for
from recipes.vllm.progress import Snapshot

# A busy server on few cores may take seconds for /health.
_PATIENCE_S = 10.0
_WORK = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
_WAITING = ("vllm:num_requests_running", "vllm:num_requests_waiting")


class Observer:
    """Looks at one server, from one thread.

    Args:
        base_url: without `/v1`.
        model: the name that requests use.
        tokens: length of our own requests. As long as the real ones: a server whose memory for
            long prompts is stuck may still answer short ones.
        stores: it puts hidden states into a store; ours are not to be put there.
    """

    def __init__(self, base_url: str, model: str, tokens: int = 4, *, stores: bool = False) -> None:
        self._model, self._tokens = model, tokens
        self._params = {"kv_transfer_params": {"unread": True}} if stores else {}
        self._client = client_for(base_url, _PATIENCE_S)
        self._canary: _Canary | None = None

    def look(self, code: int | None = None) -> Snapshot:
        """A snapshot now; `code` is the exit code of a server that has ended."""
        now = time.monotonic()
        if code is not None:
            return Snapshot(now, code=code)
        status = work = errors = None
        waiting: int | None = None
        # ValueError: a page that is not Prometheus's, or is cut off.
        with contextlib.suppress(httpx.HTTPError, ValueError):
            status = self._client.get("/health").status_code
            reply = self._client.get("/metrics")
            if reply.status_code == 200:
                work, waiting, errors = read(reply.text)
        if self.has_canary:
            waiting = max(1, waiting or 0)
        return Snapshot(time.monotonic(), None, status, work, waiting, errors)

    @property
    def has_canary(self) -> bool:
        """Whether a request of ours waits for its answer."""
        return self._canary is not None and self._canary.is_alive()

    def send_canary(self, patience_s: float) -> None:
        """Asks for one token in the background; at most one such request at a time."""
        if not self.has_canary:
            self._canary = _Canary(
                str(self._client.base_url), self._model, self._tokens, patience_s, self._params
            )
            self._canary.start()

    def close(self) -> None:
        """Gives up a request that still waits."""
        self._client.close()
        if self._canary is not None:
            self._canary.give_up()


class _Canary(threading.Thread):
    """One request. What becomes of it is seen in the server's counters."""

    def __init__(
        self, base_url: str, model: str, tokens: int, patience_s: float, params: dict[str, Any]
    ) -> None:
        super().__init__(name="canary", daemon=True)
        self._client = client_for(base_url, patience_s)
        self._body: dict[str, Any] = {
            "model": model,
            "prompt": [5] * tokens,
            "max_tokens": 1,
            "temperature": 0,
        }
        self._body |= params

    def run(self) -> None:
        with contextlib.suppress(httpx.HTTPError, RuntimeError, ValueError, AttributeError):
            answer = self._client.post("/v1/completions", json=self._body).json()
            path = (answer.get("kv_transfer_params") or {}).get("hidden_states_path")
            if path:  # an extraction server wrote a file for it
                discard_when_written(Path(path))

    def give_up(self) -> None:
        self._client.close()


def read(metrics: str) -> tuple[float | None, int | None, float]:
    """(work, waiting, errors) of a `Snapshot`, from the text of `/metrics`.

    Requests that the client gave up count as no work: a deadlocked server gets rid of them too.
    """
    work, waiting, errors = 0.0, 0.0, 0.0
    found = False
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in _WORK:
                found = True
                work += sample.value
            elif sample.name == "vllm:request_success_total":
                work += sample.value if sample.labels.get("finished_reason") != "abort" else 0
            elif sample.name in _WAITING:
                waiting += sample.value
            elif sample.name == "http_requests_total":
                errors += sample.value if sample.labels.get("status") == "5xx" else 0
    return (work, int(waiting), errors) if found else (None, None, errors)
