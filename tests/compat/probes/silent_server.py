"""An OpenAI-style endpoint over TCP that names its model and then leaves every prompt unanswered.

`hang`: the request is read and never answered, which is what a deadlocked vLLM scheduler looks like
to a client. `drop`: the connection is closed at once, the same failure without the wait. The real
vLLM cannot be made to do either on demand.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class SilentServer:
    """Serves on 127.0.0.1 until `close()`; `prompts` counts the prompts it has swallowed."""

    def __init__(self, manner: str = "hang") -> None:
        self.prompts = 0
        self._stop = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = json.dumps({"object": "list", "data": [_MODEL]}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.prompts += 1
                if manner == "hang":
                    outer._stop.wait()
                self.close_connection = True

            def log_message(self, *args: Any) -> None:
                """Quiet: the client's own messages are what counts."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()


_MODEL = {"id": "body", "object": "model", "created": 0, "owned_by": "test"}
