"""A training that is given two servers, of which the first is down."""

import itertools
import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file

from speculators.train.data import ArrowDataset

folder = Path(tempfile.mkdtemp())
numbers = itertools.count()


class Handler(BaseHTTPRequestHandler):
    """As much of vLLM's API as the data set needs."""

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "verifier"}]})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        ids = json.loads(body)["prompt"]
        path = folder / f"{next(numbers)}.safetensors"
        states = torch.zeros(len(ids), 4, 8, dtype=torch.bfloat16)
        save_file({"hidden_states": states, "token_ids": torch.tensor(ids)}, path)
        choice = {"index": 0, "text": "", "finish_reason": "length"}
        choice |= {"logprobs": None, "prompt_token_ids": ids}
        answer = {"id": "x", "object": "text_completion", "created": 0}
        answer |= {"model": "verifier", "choices": [choice]}
        self.answer(answer | {"kv_transfer_params": {"hidden_states_path": str(path)}})

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


up = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
down = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
down.server_close()
threading.Thread(target=up.serve_forever, daemon=True).start()
rows = [{"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1], "seq_len": 3}] * 4
Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
urls = [f"http://127.0.0.1:{server.server_port}/v1" for server in (down, up)]
dataset = ArrowDataset(8, folder / "data", vllm_endpoint=",".join(urls), max_retries=0)
had = sum(isinstance(dataset[index], dict) for index in range(4))
if had < 4:
    print(f"DEFECT: one of two servers is up, {had} of 4 samples were had")
    sys.exit(1)
print(f"OK: one of two servers is up, {had} of 4 samples were had")
