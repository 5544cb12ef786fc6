"""Several servers as one producer: a failed one is out, is looked after, and waits end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speculators_patches.producer import Gone, Producer
from speculators_patches.several import Several, addresses, producer_at

PROMPT = [3, 4, 5, 6]


class Answers(BaseHTTPRequestHandler):
    """Says what vLLM says to a probe."""

    def _say(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._say({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say({"kv_transfer_params": {"hidden_states_path": "/none"}})

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # boards
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Answers) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}/v1" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def discard(_: str) -> None: ...


def ask(producers: Several) -> str:
    with producers.turn(PROMPT, discard) as url:
        return url


def test_one_address_is_a_plain_producer() -> None:
    assert type(producer_at("http://a/v1", 1.0)) is Producer
    assert addresses("http://a, http://b,http://a,") == ("http://a", "http://b")


def test_a_failed_one_is_out_until_it_answers_and_nobody_waits(urls: list[str]) -> None:
    producers = Several([*urls], 60.0)
    failed = ask(producers)
    began = time.monotonic()
    producers.wait("it failed", PROMPT, None, discard)
    assert time.monotonic() - began < 0.3  # the first look at a server is later than that
    assert {ask(producers) for _ in range(3)} == set(urls) - {failed}
    deadline = time.monotonic() + 20
    while failed not in (ask(producers), ask(producers)):  # the thread's look puts it back
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_each_can_be_asked_whether_it_answers(urls: list[str]) -> None:
    dead = "http://127.0.0.1:1/v1"
    producers = Several([*urls, dead], 60.0)
    assert producers.urls == (*urls, dead)
    answers = [producers.answers(url, PROMPT, discard) for url in producers.urls]
    assert answers == [True, True, False]
    assert producers.asked == urls[0]
    asked = ask(producers)
    assert producers.asked == asked


def test_another_process_that_was_killed_left_one_out(urls: list[str]) -> None:
    before = Several([*urls], 60.0)
    before._board.take_out(urls[0])
    producers = Several([*urls], 60.0)
    deadline = time.monotonic() + 20
    while urls[0] not in (ask(producers), ask(producers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_servers_that_answer_all_but_the_samples_are_not_waited_for_without_end(
    urls: list[str],
) -> None:
    producers = Several([*urls], 2.0)

    def again_and_again() -> None:
        began = time.monotonic()
        while time.monotonic() - began < 60:
            ask(producers)
            producers.wait("it failed", PROMPT, None, discard)

    with pytest.raises(Gone, match=r"no hidden states from http.*, http.*: it failed\. Mend that"):
        again_and_again()
    assert producers.gone


def test_all_gone_is_said_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    producers = Several(["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"], 1.0)
    ask(producers)
    producers._board.take_out("http://127.0.0.1:1/v1")
    producers._board.take_out("http://127.0.0.1:2/v1")
    with pytest.raises(Gone, match=r"127.0.0.1:1: nothing accepts .*127.0.0.1:2: nothing accepts"):
        producers.wait("it failed", PROMPT, None, discard)
