"""A scripted chat server and the real command, for tests of regenerate-responses."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from speculators.cli.regenerate_responses import regenerate_responses

# ---- shared ----
class ChatServer(BaseHTTPRequestHandler):
    """Answers every request with three tokens, or as the test wants it."""

    def do_POST(self):
        self.server.asked += 1
        length = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(length))
        behaviour = self.server.behaviour(request, self.server.asked)
        if behaviour == "silent":
            time.sleep(30)
            return
        status = 400 if behaviour == "refuse" else 200
        answer = {
            "prompt_token_ids": [1, 2],
            "choices": [
                {
                    "message": {"role": "assistant", "content": "3 4 5"},
                    "token_ids": [3, 4, 5],
                    "finish_reason": "stop",
                }
            ],
            "usage": {"completion_tokens": 3},
        }
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def make_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), ChatServer)
    server.daemon_threads = True
    server.asked = 0
    server.behaviour = lambda request, count: "answer"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def make_command(folder, server):
    """The command over six conversations of 1, 2 or 3 turns; calling it runs it."""
    words = {str(number): number for number in range(8)} | {"<unk>": 8}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model = folder / "model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(model)
    prompts = folder / "prompts.jsonl"
    with prompts.open("w") as file:
        for number in range(6):
            turn = {"role": "user", "content": f"question {number}"}
            row = {"id": f"c{number}", "messages": [turn] * (1 + number % 3)}
            file.write(json.dumps(row) + "\n")

    def run(**options):
        port = server.server_address[1]
        defaults = {
            "endpoint": f"http://127.0.0.1:{port}/v1/chat/completions",
            "model": str(model),
            "dataset": str(prompts),
            "outfile": str(folder / "out.jsonl"),
            "concurrency": 1,
            "max_retries": 0,
        }
        try:
            regenerate_responses(**defaults | options)
        except typer.BadParameter:
            return 2
        except typer.Exit as done:
            return done.exit_code
        except SystemExit as done:
            return done.code if isinstance(done.code, int) else 1
        return 0

    run.outfile = folder / "out.jsonl"
    return run


@pytest.fixture
def server():
    server = make_server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def regenerate(tmp_path, server):
    return make_command(tmp_path, server)


def rows_of(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


ALL_ROWS = sorted(f"c{c}_gen{turn}" for c in range(6) for turn in range(1 + c % 3))
