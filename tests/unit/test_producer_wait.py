"""The wait for a producer ends, also where it answers everything but the samples."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from speculators_patches import producer
from speculators_patches.extraction_servers import Servers
from speculators_patches.producer import Gone, Producer

asked: list[int] = []
extracts = True


class Answers(BaseHTTPRequestHandler):
    def _say(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._say({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked.append(len(body["prompt"]))
        self._say({"kv_transfer_params": {"hidden_states_path": "/nowhere"}} if extracts else {})

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_it_probes_with_prompts_as_long_as_the_sample(url: str) -> None:
    asked.clear()
    Producer(url, 60).wait("it failed", list(range(3, 40)), None, lambda _: None)
    assert asked == [37]


def test_a_server_that_answers_all_but_the_samples_is_not_waited_for_without_end(url: str) -> None:
    one = Producer(url, 1.0)

    def again_and_again() -> None:  # as the patch does: the probe is answered, the sample is not
        began = time.monotonic()
        while time.monotonic() - began < 60:
            one.wait("it failed", [1, 2, 3], None, lambda _: None)

    with pytest.raises(Gone, match=r"no hidden states from .*: it failed\. Mend that"):
        again_and_again()
    assert one.gone


@pytest.mark.parametrize("news", ["an answer under way", "a sample at fault"])
def test_an_answer_that_comes_in_after_the_failure_does_not_make_the_wait_endless(
    news: str,
) -> None:
    """Requests that share a server: one was answered before it died, and is looked at after."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = f"http://127.0.0.1:{port.getsockname()[1]}"

    async def extraction() -> None:
        servers = Servers([address], 0.5)
        (dead,) = servers.all
        waiting = asyncio.create_task(
            servers.away(dead, 0, "it failed", [1, 2, 3], None, lambda _: None)
        )
        await asyncio.sleep(0.1)
        if news == "a sample at fault":
            dead.producer.not_to_blame()
        else:
            dead.producer.answered({})
        await asyncio.wait_for(waiting, 30)

    with pytest.raises(Gone, match="nothing accepts connections there"):
        asyncio.run(extraction())


def test_a_server_that_extracts_nothing_is_not_the_producer(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.extracts", False)
    found = Producer(url, 1.0).problem([1, 2, 3], lambda _: None)
    assert found == "what answers there extracts no hidden states"


def test_a_suspect_is_asked_also_where_no_lock_can_be_made(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full /tmp must not turn into a sample's fault."""
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    with Producer(url, 1.0).alone():
        pass


def test_a_folder_that_only_the_server_may_write_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(producer.os, "open", refuse)
    assert producer.no_room(tmp_path, 10) is None
