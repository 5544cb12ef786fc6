"""What a broken server answers: each a sentence, none a measurement. Scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.client import BenchError, Client
from benchmarks.served import counters, served
from recipes.vllm_server import ServerError

USAGE = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}, "choices": []}


def chunk(text: str, reason: str | None = None, ids: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason, "token_ids": ids}]}


@pytest.fixture
def say() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that answers what `told` holds: `body`, `status`, `models`."""
    told: dict[str, Any] = {"status": 200, "body": "", "models": "{}"}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(told["status"], told["body"])

        def do_GET(self) -> None:
            if self.path in ("/metrics", "/version"):
                self._answer(404, "")
            else:
                self._answer(200, told["models"] if self.path == "/v1/models" else "")

        def _answer(self, status: int, text: str) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", told
    server.shutdown()
    thread.join()
    server.server_close()


def events(*found: Any) -> str:
    lines = [f if isinstance(f, str) else json.dumps(f) for f in found]
    return "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, events(chunk("a"), "<html>", USAGE), "holds what is not JSON: 'data: <html>'"),
        (200, events(chunk("a"), "[1]", USAGE), "holds what is not JSON"),
        (200, events(chunk("a", "abort"), USAGE), "ended prompt p with the reason 'abort'"),
        (200, events(chunk("a"), USAGE), "ended early"),
        (200, events(chunk("a", "stop")), "ended early"),
        (200, "", "ended early"),
        (200, events({"error": {"message": "engine died"}}), "broke off prompt p"),
        (500, "oops", "HTTP 500: oops"),
        (400, "longer than the context length", "Raise --max-model-len"),
    ],
)
def test_a_broken_answer_is_a_sentence(
    say: tuple[str, dict[str, Any]], status: int, body: str, why: str
) -> None:
    url, told = say
    told |= {"status": status, "body": body}
    with Client(url, "m") as client, pytest.raises(BenchError) as error:
        client.ask([{"role": "user", "content": "x"}], "prompt p", temperature=0.0)
    assert why in str(error.value)


def test_a_whole_answer_is_read(say: tuple[str, dict[str, Any]]) -> None:
    url, told = say
    told["body"] = events(chunk("Hel", ids=(7,)), chunk("lo", "stop", (8,)), USAGE)
    with Client(url, "m") as client:
        reply = client.ask([{"role": "user", "content": "x"}], "prompt p", temperature=0.0)
    assert (reply.text, reply.token_ids, reply.finish_reason) == ("Hello", (7, 8), "stop")


@pytest.mark.parametrize("models", ["<html>", "{}", '{"data": []}', '{"data": [{}]}', "[]"])
def test_a_server_that_is_no_vllm_is_named(say: tuple[str, dict[str, Any]], models: str) -> None:
    url, told = say
    told["models"] = models
    with pytest.raises(ServerError, match="does not list its models"):
        served(url)
    told["models"] = '{"data": [{"id": "name", "root": "folder"}]}'
    found = served(f"{url}/v1")
    assert (found.model, found.root) == ("name", "folder")
    assert counters(url) is None
    with pytest.raises(ServerError, match="No vLLM server answers"):
        served("http://127.0.0.1:9")
