"""torchrun --max-restarts: a rank, or torchrun itself, is killed, and the run ends as if not.

Nightly, a minute each; tests/e2e/test_launch_torchrun.py runs the short form of it in `make test`.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from recipes.spread import torchrun
from tests.faults.long_run import Training, prepare, stop, wait_for

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(torch.accelerator.is_available(), reason="bitwise comparison on the CPU"),
]

FLAGS = ("--epochs", "2", "--num-workers", "0", "--checkpoint-every-minutes", "0",
         "--checkpoint-every-steps")  # fmt: skip
ELASTIC = ("--max-restarts", "1", "--monitor-interval", "0.2")
WRAPPERS = [(), ("--fsdp-shard",)]


def pids(one: Training, rank: int) -> list[int]:
    """Processes that were this rank, in order."""
    record = one.folder / f"record.jsonl{rank}"
    lines = record.read_text().splitlines() if record.exists() else []
    return [row["pid"] for line in lines if "pid" in (row := json.loads(line))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def same(one: Training, other: Training) -> bool:
    weights = ("1", "model.safetensors")
    return (
        one.steps() == other.steps()
        and one.validations() == other.validations()
        and one.state() == other.state()
        and one.out.joinpath(*weights).read_bytes() == other.out.joinpath(*weights).read_bytes()
    )


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=["ddp", "fsdp"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_costs_one_restart_and_no_bit(
    rank: int, wrapper: tuple[str, ...], tmp_path: Path
) -> None:
    work = prepare(tmp_path)
    alone = Training(work, tmp_path / "alone", *FLAGS, "4", *wrapper, ranks=2)
    assert alone.finish() == 0, alone.said()[-3000:]

    one = Training(work, tmp_path / "run", *FLAGS, "2", *wrapper, ranks=2, torchrun=ELASTIC)
    process = one.start(SLOW_S="0.1", **torchrun.ENVIRONMENT)
    try:
        wait_for(lambda: one.trained() >= 6, process)
        os.kill(pids(one, rank)[0], signal.SIGKILL)
        assert process.wait(200) == 0, one.said()[-3000:]
    finally:
        stop(process)
    # With one restart allowed, one was enough.
    assert len(pids(one, 0)) == len(pids(one, 1)) == 2
    assert torchrun.restarts(one.log) == 1
    assert "resuming from ckpt-" in one.said()
    assert same(one, alone)
    committed = one.checkpoints()
    assert not any(record.problem for record in committed)
    assert all(record.manifest and record.manifest.world_size == 2 for record in committed)


def test_ranks_end_with_a_killed_torchrun_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """torchrun gives each rank a session of its own: nobody else would end them."""
    work = prepare(tmp_path)
    alone = Training(work, tmp_path / "alone", *FLAGS, "4", ranks=2)
    assert alone.finish() == 0, alone.said()[-3000:]
    one = Training(work, tmp_path / "run", *FLAGS, "2", ranks=2, torchrun=ELASTIC)
    process = one.start(SLOW_S="0.3", **torchrun.ENVIRONMENT)
    try:
        wait_for(lambda: one.trained() >= 4, process)
        ranks = pids(one, 0) + pids(one, 1)
        os.kill(process.pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while any(is_alive(pid) for pid in ranks):
            assert time.monotonic() < until, "ranks train on without torchrun"
            time.sleep(0.1)
    finally:
        stop(process)
    assert one.checkpoints()[0].tags == ("shutdown",), one.said()[-3000:]
    assert one.finish(**torchrun.ENVIRONMENT) == 0, one.said()[-3000:]
    assert same(one, alone)


def test_without_the_setting_restarts_are_used_up_in_vain(tmp_path: Path) -> None:
    """Why `torchrun.ENVIRONMENT` is set; when this fails, torch has mended it and it may go."""
    work = prepare(tmp_path)
    one = Training(work, tmp_path / "run", *FLAGS, "2", ranks=2, torchrun=ELASTIC)
    process = one.start(SLOW_S="0.1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="0")
    try:
        wait_for(lambda: one.trained() >= 6, process)
        os.kill(pids(one, 1)[0], signal.SIGKILL)
        assert process.wait(200) != 0
    finally:
        stop(process)
    assert "connectFullMesh failed" in one.said()


def test_another_number_of_ranks_is_refused_in_one_sentence(tmp_path: Path) -> None:
    work = prepare(tmp_path)
    one = Training(work, tmp_path / "run", *FLAGS, "2", ranks=2, torchrun=ELASTIC)
    assert one.interrupt(4, signal.SIGTERM, SLOW_S="0.1", **torchrun.ENVIRONMENT) != 0
    before = [record.name for record in one.checkpoints()]
    single = Training(work, tmp_path / "run", *FLAGS, "2")
    single.log = tmp_path / "single.log"
    assert single.finish() == 1
    assert "world_size was 2 in the checkpoint and is 1 now; it can't be overridden" in (
        single.said()
    )
    assert [record.name for record in one.checkpoints()] == before
