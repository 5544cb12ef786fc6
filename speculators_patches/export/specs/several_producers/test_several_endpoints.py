"""Several vLLM servers share the work, and one that fails costs no sample."""

import itertools
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from speculators.train.data import ArrowDataset

MODEL = "verifier"


class Server:
    """As much of vLLM's API as the data set needs."""

    def __init__(self, folder, port=0, model=MODEL):
        numbers = itertools.count()
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer({"object": "list", "data": [{"id": model}]})

            def do_POST(self):
                outer.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                ids = json.loads(body)["prompt"]
                name = f"{self.server.server_port}-{next(numbers)}.safetensors"
                path = folder / name
                states = torch.tensor(ids, dtype=torch.bfloat16).reshape(-1, 1, 1)
                states = states.expand(-1, 4, 8).contiguous()
                tensors = {"hidden_states": states, "token_ids": torch.tensor(ids)}
                save_file(tensors, path)
                choice = {"index": 0, "text": "", "finish_reason": "length"}
                choice |= {"logprobs": None, "prompt_token_ids": ids}
                answer = {"id": "x", "object": "text_completion", "created": 0}
                answer |= {"model": model, "choices": [choice]}
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

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def open_dataset(folder, *urls, count=8):
    rows = [
        {"input_ids": [row, 2, 3], "loss_mask": [0, 1, 1], "seq_len": 3}
        for row in range(count)
    ]
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    return ArrowDataset(
        8,
        folder / "data",
        vllm_endpoint=", ".join(urls),
        max_retries=0,
    )


def right_samples(dataset):
    """How many samples were had, each with its own hidden states."""
    right = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        if isinstance(sample, dict):
            assert int(sample["input_ids"][0]) == index
            assert float(sample["hidden_states"][0, 0]) == index
            right += 1
    return right


@pytest.fixture
def servers(tmp_path):
    running = [Server(tmp_path) for _ in range(2)]
    yield running
    for server in running:
        server.stop()


def test_they_take_turns(tmp_path, servers):
    dataset = open_dataset(tmp_path, *(server.url for server in servers))

    assert right_samples(dataset) == 8
    assert [server.asked for server in servers] == [4, 4]


def test_one_that_is_down_costs_no_sample(tmp_path, servers):
    servers[0].stop()
    dataset = open_dataset(tmp_path, *(server.url for server in servers))

    assert right_samples(dataset) == 8
    assert servers[1].asked == 8


def test_one_that_goes_down_and_comes_back(tmp_path, servers):
    dataset = open_dataset(tmp_path, *(server.url for server in servers), count=4)
    dataset.endpoints.rest = 0.0
    assert right_samples(dataset) == 4
    port = servers[0].server.server_port
    servers[0].stop()
    assert right_samples(dataset) == 4

    servers[0] = Server(tmp_path, port)

    assert right_samples(dataset) == 4
    assert servers[0].asked == 2


def test_workers_begin_with_different_ones(tmp_path, servers):
    dataset = open_dataset(tmp_path, *(server.url for server in servers), count=2)
    loader = DataLoader(
        dataset,
        batch_size=None,
        num_workers=2,
        multiprocessing_context="spawn",
    )

    assert all(isinstance(sample, dict) for sample in loader)
    assert [server.asked for server in servers] == [1, 1]


def test_another_model_is_refused(tmp_path, servers):
    other = Server(tmp_path, model="another")
    dataset = open_dataset(tmp_path, servers[0].url, other.url, count=2)

    assert isinstance(dataset[0], dict)
    with pytest.raises(ValueError, match="another"):
        dataset._generate_hidden_states(dataset.data[1], {"input_ids": [1, 2, 3]})
    other.stop()


def test_with_one_address_it_is_asked_always(tmp_path, servers):
    dataset = open_dataset(tmp_path, servers[0].url)

    assert right_samples(dataset) == 8
    assert servers[0].asked == 8


def test_all_down_is_a_failure_as_before(tmp_path):
    urls = [f"http://127.0.0.1:{closed_port()}/v1" for _ in range(2)]
    dataset = open_dataset(tmp_path, *urls, count=1)

    assert dataset[0].counts_as_failure
