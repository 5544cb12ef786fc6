"""A chat endpoint over TCP that answers by rule, and fails, hangs or kills its client by plan.

    python -m tests.faults.probes.chat_server MODEL_FOLDER      # prints its port

It is for what the real vLLM can't be made to do at a chosen request, hundreds of times in seconds.
An answer is a function of the messages alone; a token is a byte. `POST /plan` begins a new count of
requests: {"faults": {"3": "500"}, "kill_at": 5, "pid": 4711}; faults are 400, 500, drop, hang.
`GET /asked` gives what was asked since, in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def tokens(text: str) -> list[int]:
    """The rule of the test tokenizer: one token a byte."""
    return list(text.encode())


def prompt_of(messages: list[dict[str, Any]]) -> str:
    return "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"


def answer_to(messages: list[dict[str, Any]]) -> str:
    said = messages[-1]["content"]
    return f"I say to {said!r}, after {len(messages)} messages: {said[::-1]} and good day."


class State:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.plan: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []

    def take(self, payload: dict[str, Any]) -> tuple[str | None, bool]:
        """(the fault for this request, whether to kill the client after it)."""
        with self.lock:
            self.asked.append(payload)
            number = len(self.asked)
            fault = self.plan.get("faults", {}).get(str(number))
            return fault, number == self.plan.get("kill_at")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State
    model: str
    stop = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/asked":
            return self.reply(self.state.asked)
        if self.path == "/version":
            return self.reply({"version": "0.32.0"})
        return self.reply({"object": "list", "data": [{"id": self.model, "object": "model"}]})

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/plan":
            with self.state.lock:
                self.state.plan, self.state.asked = payload, []
            return self.reply({})
        fault, kills = self.state.take(payload)
        if fault is None:
            self.reply(self.answer(payload))
        elif fault == "drop":
            self.close_connection = True
        elif fault == "hang":
            self.stop.wait(20)
            self.close_connection = True
        else:
            self.reply({"error": fault}, int(fault))
        if kills:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.state.plan["pid"], signal.SIGKILL)
        return None

    def answer(self, payload: dict[str, Any]) -> dict[str, Any]:
        messages = payload["messages"]
        text = answer_to(messages)
        prompt, said = tokens(prompt_of(messages)), [*tokens(text), 0]
        return {
            "id": "chat-1",
            "object": "chat.completion",
            "model": self.model,
            "prompt_token_ids": prompt,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                    "token_ids": said,
                }
            ],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(said)},
        }

    def reply(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def main() -> None:
    Handler.state, Handler.model = State(), sys.argv[1]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the owner is gone


if __name__ == "__main__":
    main()
