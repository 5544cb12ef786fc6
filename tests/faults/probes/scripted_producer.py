"""A producer of hidden states that fails in ways and at moments that a test chooses.

It speaks vLLM's `/health`, `/v1/models` and `/v1/completions` and writes the files that vLLM would
write. What the real one does when it is killed, stopped, or out of disk is in tests/e2e; here is
what it can't be made to do on demand: 4xx and 5xx for one prompt, a broken connection for one
prompt, a promised file that is missing or torn.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import socket
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.faults import tiny

SLOW_S = 1.2


def states(prompt: Sequence[int]) -> torch.Tensor:
    """[tokens, 4, hidden] bf16, a function of the prompt."""
    random = torch.Generator().manual_seed(sum(prompt))
    return torch.randn(len(prompt), 4, tiny.HIDDEN, generator=random).to(torch.bfloat16)


class ScriptedProducer:
    """Serves on 127.0.0.1, on one port for its whole life, up or down.

    Attributes:
        plan: prompt -> what is done with its next requests; the last entry is repeated for ever,
            nothing or "": an answer. drop, 400, 500, missing, torn, nan, silent (no answer for a
            minute), slow (an answer at once, its file, locked, after SLOW_S).
        asked: the prompts it got, short ones of a canary included.
        paths: of all requests, those it does not serve included.
        imposter: something else answers at its address.
        plain: what answers is vLLM, and was not started to extract hidden states.
    """

    def __init__(self, folder: Path, model: str = "body") -> None:
        self.folder, self.model = folder, model
        self.plan: dict[tuple[int, ...], list[str]] = {}
        self.asked: list[tuple[int, ...]] = []
        self.paths: list[str] = []
        self.imposter = self.plain = False
        self._number = itertools.count()
        self._stops: dict[tuple[int, ...], float | None] = {}
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def up(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def setup(self) -> None:
                super().setup()
                outer._open.add(self.connection)

            def finish(self) -> None:
                outer._open.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                outer._get(self)

            def do_POST(self) -> None:
                outer._post(self)

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def down(self, then_up_after_s: float | None = None) -> None:
        """Closes the port: connections are refused."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        if then_up_after_s is not None:
            threading.Timer(then_up_after_s, self.up).start()

    def stop_at(self, prompt: tuple[int, ...], then_up_after_s: float | None = None) -> None:
        """At the next request with `prompt` it breaks off every connection, as if it was killed."""
        self._stops[prompt] = then_up_after_s

    def _stop(self, then_up_after_s: float | None) -> None:
        self.down(then_up_after_s)
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _get(self, to: BaseHTTPRequestHandler) -> None:
        self.paths.append(to.path)
        if self.imposter:
            reply(to, 200, "<html>another program</html>")
        elif to.path == "/v1/models":
            reply(to, 200, json.dumps({"object": "list", "data": [_MODEL | {"id": self.model}]}))
        else:
            reply(to, 200 if to.path == "/health" else 404, "")

    def _post(self, to: BaseHTTPRequestHandler) -> None:
        self.paths.append(to.path)
        body = json.loads(to.rfile.read(int(to.headers["Content-Length"])))
        if self.imposter or to.path != "/v1/completions":
            reply(to, 404, "not here")
            return
        prompt = tuple(body["prompt"])
        self.asked.append(prompt)
        if prompt in self._stops:
            self._stop(self._stops.pop(prompt))
            return
        plan = self.plan.get(prompt, [""])
        manner = plan.pop(0) if len(plan) > 1 else plan[0]
        if manner == "drop":
            to.close_connection = True
            to.connection.close()
        elif manner == "silent":
            time.sleep(60)
        elif manner.isdigit():
            reply(to, int(manner), json.dumps({"error": {"message": f"scripted {manner}"}}))
        else:
            reply(to, 200, json.dumps(self._answer(prompt, manner)))

    def _answer(self, prompt: tuple[int, ...], manner: str) -> dict[str, Any]:
        path = self.folder / f"cmpl-{next(self._number)}.safetensors"
        if manner == "slow":
            threading.Thread(target=self._write_slowly, args=(path, prompt), daemon=True).start()
            while not path.with_name(f"{path.name}.lock").exists():
                time.sleep(0.01)
        elif manner != "missing" and not self.plain:
            hidden = states(prompt)
            if manner == "nan":
                hidden[0, 0, 0] = torch.nan
            save_file({"hidden_states": hidden, "token_ids": torch.tensor(prompt)}, path)
        if manner == "torn":
            path.write_bytes(path.read_bytes()[:-50])
        stored = {} if self.plain else {"hidden_states_path": str(path)}
        choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
        return {
            "id": "cmpl", "object": "text_completion", "created": 0, "model": "body",
            "choices": [choice | {"prompt_token_ids": list(prompt)}],
            "kv_transfer_params": stored or None,
        }  # fmt: skip

    def _write_slowly(self, path: Path, prompt: Sequence[int]) -> None:
        with path.with_name(f".{path.name}.new").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            Path(lock.name).rename(path.with_name(f"{path.name}.lock"))
            time.sleep(SLOW_S)
            save_file({"hidden_states": states(prompt), "token_ids": torch.tensor(prompt)}, path)


def reply(to: BaseHTTPRequestHandler, status: int, text: str) -> None:
    data = text.encode()
    to.send_response(status)
    to.send_header("Content-Type", "application/json")
    to.send_header("Content-Length", str(len(data)))
    to.end_headers()
    to.wfile.write(data)


_MODEL = {"object": "model", "created": 0, "owned_by": "test"}
