"""The watcher's thread and the one that shows what it saw; pages that are no metrics."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from recipes.vllm.observe import Observer
from recipes.vllm.progress import Snapshot
from recipes.vllm.watch import Watch, Watcher


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns a thousand times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hurried")
def test_it_can_be_shown_while_it_looks(tmp_path: Path) -> None:
    """A deque that grows while it is read raises, which would end the stage that shows it."""
    nobody: Any = None
    watcher = Watcher(nobody, Watch(), tmp_path)
    ended = threading.Event()

    def look() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            watcher._snapshots.append(Snapshot(float(number), None, 200, float(number), 1))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert watcher.status().startswith("vLLM ")
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    "page", ["<html>another program</html>", 'vllm:prompt_tokens_total{a="', ""]
)
def test_a_page_that_is_no_metrics_ends_no_watch(page: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = page.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    observer = Observer(f"http://127.0.0.1:{server.server_port}", "m")
    try:
        seen = observer.look()
        assert (seen.status, seen.work, seen.code) == (200, None, None)
    finally:
        observer.close()
        server.shutdown()
