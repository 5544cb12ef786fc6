"""A server that can't be reached is waited for; an answer with an error is final."""

import itertools
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from datasets import Dataset
from safetensors.torch import save_file

from speculators.train.data import ArrowDataset
from speculators.train.recovery import SampleUnavailable

MODEL = "verifier"


class Server:
    """As much of vLLM's API as the data set needs, from the moment it is made."""

    def __init__(self, folder, port, status=200, drop=0):
        numbers = itertools.count()
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(200, {"object": "list", "data": [{"id": MODEL}]})

            def do_POST(self):
                outer.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if outer.asked <= drop:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                ids = json.loads(body)["prompt"]
                path = folder / f"generated{next(numbers)}.safetensors"
                states = torch.zeros(len(ids), 4, 8, dtype=torch.bfloat16)
                tensors = {"hidden_states": states, "token_ids": torch.tensor(ids)}
                save_file(tensors, path)
                choice = {"index": 0, "text": "", "finish_reason": "length"}
                choice |= {"logprobs": None, "prompt_token_ids": ids}
                answer = {"id": "x", "object": "text_completion", "created": 0}
                answer |= {"model": MODEL, "choices": [choice]}
                answer |= {"kv_transfer_params": {"hidden_states_path": str(path)}}
                self.answer(status, answer)

            def answer(self, code, content):
                text = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def open_dataset(folder, port, **options):
    rows = [{"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1], "seq_len": 3}] * 3
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    defaults = {"max_retries": 0, "generation_validation_retries": 0}
    return ArrowDataset(
        8,
        folder / "data",
        vllm_endpoint=f"http://127.0.0.1:{port}/v1",
        **defaults | options,
    )


def test_a_server_that_comes_up_late_costs_no_sample(tmp_path):
    port = free_port()
    dataset = open_dataset(tmp_path, port)
    late = threading.Timer(2, lambda: Server(tmp_path, port))
    late.start()

    samples = [dataset[index] for index in range(3)]

    assert not any(isinstance(sample, SampleUnavailable) for sample in samples)


def test_a_connection_that_breaks_is_tried_again(tmp_path):
    port = free_port()
    server = Server(tmp_path, port, drop=2)

    sample = open_dataset(tmp_path, port)[0]

    assert isinstance(sample, dict)
    assert server.asked == 3


def test_an_answer_with_an_error_is_the_sample_s_fault(tmp_path):
    port = free_port()
    server = Server(tmp_path, port, status=400)

    sample = open_dataset(tmp_path, port)[0]

    assert isinstance(sample, SampleUnavailable)
    assert server.asked == 1


def test_it_is_waited_for_so_long_and_once(tmp_path):
    dataset = open_dataset(tmp_path, free_port(), producer_wait=2.0)
    began = time.monotonic()

    first = dataset[0]
    waited = time.monotonic() - began
    rest = [dataset[index] for index in (1, 2)]

    assert isinstance(first, SampleUnavailable)
    assert 2 <= waited < 20
    assert all(isinstance(sample, SampleUnavailable) for sample in rest)
    assert time.monotonic() - began < waited + 5


def test_waiting_can_be_turned_off(tmp_path):
    dataset = open_dataset(tmp_path, free_port(), producer_wait=0)

    assert isinstance(dataset[0], SampleUnavailable)


def test_a_restart_in_the_middle_costs_no_sample(tmp_path):
    port = free_port()
    dataset = open_dataset(tmp_path, port)
    server = Server(tmp_path, port).server
    first = dataset[0]
    server.shutdown()
    server.server_close()
    threading.Timer(1.0, lambda: Server(tmp_path, port)).start()

    second = dataset[1]

    assert isinstance(first, dict)
    assert isinstance(second, dict)
