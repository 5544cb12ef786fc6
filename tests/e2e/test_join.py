"""Trainers on two machines (two loopback addresses): one leads, one joins; both may be killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from speculators_patches.checkpointing import names, reading
from tests.e2e import spread_run

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
