"""step_checkpoints under torchrun: two real gloo ranks, upstream's own DDP and FSDP."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.compat import running
from tests.faults.long_run import BATCHES, Training, prepare, stop, wait_for

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="bitwise comparison on the CPU"
)

FLAGS = ("--epochs", "2", "--num-workers", "0", "--checkpoint-every-minutes", "0",
         "--checkpoint-every-steps")  # fmt: skip


def test_two_ranks_agree_on_the_best(tmp_path: Path) -> None:
    """Rank 0 alone writes folders; the others must not decide by what they see on the disk."""
    work = prepare(tmp_path)
    for name, flags in (("best", ("--save-best",)), ("rare", ("--checkpoint-freq", "3"))):
        one = Training(work, tmp_path / name, *FLAGS, "100", *flags, ranks=2)
        assert one.finish() == 0, one.said()[-3000:]
        assert (one.out / "checkpoint_best").is_symlink()
        assert one.checkpoints()[0].tags[-1] == "final"


def test_three_ranks_add_in_one_order_before_and_after_a_kill(tmp_path: Path) -> None:
    """DDP fills its buckets anew after a process's first step, which orders sums of three."""
    work = prepare(tmp_path)
    more = ("--epochs", "1", "--train-data-ratio", "0.8")  # each rank has something to validate
    alone = Training(work, tmp_path / "alone", *FLAGS, "100", *more, ranks=3)
    assert alone.finish() == 0, alone.said()[-3000:]

    one = Training(work, tmp_path / "run", *FLAGS, "2", *more, ranks=3)
    process = one.start(SLOW_S="0.2")
    try:
        wait_for(lambda: one.trained() >= 3, process)
    finally:
        stop(process)
    assert one.checkpoints()
    assert one.finish() == 0, one.said()[-3000:]
    assert one.state() == alone.state()


@pytest.mark.parametrize(
    "wrapper", [(), pytest.param(("--fsdp-shard",), marks=pytest.mark.nightly)]
)
def test_two_ranks_commit_together_and_go_on_exactly(
    wrapper: tuple[str, ...], tmp_path: Path
) -> None:
    work = prepare(tmp_path)
    steps = BATCHES // 2 * 2
    alone = Training(work, tmp_path / "alone", *FLAGS, "4", *wrapper, ranks=2)
    assert alone.finish() == 0, alone.said()[-3000:]
    assert sorted(alone.steps()) == list(range(steps))

    one = Training(work, tmp_path / "run", *FLAGS, "2", *wrapper, ranks=2)
    process = one.start(SLOW_S="0.2")
    try:
        wait_for(lambda: one.trained() >= 6, process)
        other = one.folder / "record.jsonl1"
        pid = next(json.loads(line)["pid"] for line in other.read_text().splitlines())
        os.kill(pid, signal.SIGKILL)
        assert process.wait(120) != 0
    finally:
        stop(process)
    whole = one.checkpoints()
    assert whole
    assert not any(record.problem for record in whole)
    assert all(record.manifest and record.manifest.world_size == 2 for record in whole)

    assert one.interrupt(4, signal.SIGTERM, SLOW_S="0.2") != 0
    newest = one.checkpoints()[0]
    assert newest.tags == ("shutdown",), one.said()[-3000:]
    assert newest.step > whole[0].step

    assert one.finish() == 0, one.said()[-3000:]
    assert one.steps() == alone.steps()
    assert one.validations() == alone.validations()
    assert one.state() == alone.state()
    last = ("1", "model.safetensors")
    assert (one.out.joinpath(*last)).read_bytes() == (alone.out.joinpath(*last)).read_bytes()

    command = ("-m", "speculators_patches", "checkpoints", "export", one.out, tmp_path / "exported")
    done = running.python("0.9.0", *command)
    assert done.returncode == 0, done.stderr[-3000:]
    exported = (tmp_path / "exported" / "model.safetensors").read_bytes()
    assert exported == one.out.joinpath(*last).read_bytes()

    single = Training(work, tmp_path / "run", *FLAGS, "2")
    single.log = tmp_path / "single.log"
    assert single.finish() == 1
    assert "world_size was 2 in the checkpoint and is 1 now; it can't be overridden" in (
        single.said()
    )
