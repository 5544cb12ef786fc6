"""A file that does not fit its sample never gets the name of a finished one."""

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from speculators.cli.generate_offline_data import generate_offline_data

ROWS = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
BAD = ROWS[1]


class Server:
    """As much of vLLM's API as the command needs; while `bad`, one row holds a NaN."""

    def __init__(self, folder):
        self.bad = True
        self.asked = []
        outer, numbers = self, itertools.count()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer({"object": "list", "data": [{"id": "verifier"}]})

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                ids = json.loads(body)["prompt"]
                outer.asked.append(ids)
                states = torch.zeros(len(ids), 4, 8)
                if outer.bad and ids == BAD:
                    states[0, 0, 0] = torch.nan
                path = folder / f"generated{next(numbers)}.safetensors"
                tensors = {"hidden_states": states, "token_ids": torch.tensor(ids)}
                save_file(tensors, path)
                choice = {"index": 0, "text": "", "finish_reason": "length"}
                choice |= {"logprobs": None, "prompt_token_ids": ids}
                answer = {"id": "x", "object": "text_completion", "created": 0}
                answer |= {"model": "verifier", "choices": [choice]}
                answer |= {"kv_transfer_params": {"hidden_states_path": str(path)}}
                self.answer(answer)

            def answer(self, content):
                text = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"


def extract(folder, server):
    """The names of the files that one call leaves in place."""
    data, out = folder / "data", folder / "out"
    if not data.exists():
        rows = [
            {"input_ids": ids, "loss_mask": [0, 1, 1], "seq_len": 3} for ids in ROWS
        ]
        Dataset.from_list(rows).with_format("torch").save_to_disk(str(data))
    generate_offline_data(
        endpoint=server.url,
        preprocessed_data=str(data),
        output=str(out),
        concurrency=2,
        validate_outputs=True,
        max_retries=0,
    )
    return sorted(path.name for path in out.iterdir())


@pytest.fixture
def server(tmp_path):
    (tmp_path / "vllm").mkdir()
    return Server(tmp_path / "vllm")


def test_a_file_that_does_not_fit_is_not_in_place(tmp_path, server):
    assert extract(tmp_path, server) == ["hs_0.safetensors", "hs_2.safetensors"]
    assert list((tmp_path / "vllm").iterdir()) == []


def test_the_next_call_makes_it(tmp_path, server):
    extract(tmp_path, server)
    server.bad = False
    server.asked.clear()

    names = extract(tmp_path, server)

    assert names == [f"hs_{row}.safetensors" for row in range(3)]
    assert server.asked == [BAD]
