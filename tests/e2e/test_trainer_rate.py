"""benchmarks.trainer_rate in small: upstream's real trainer, with and without the overlay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import trainer_rate
from benchmarks.trainer_rate import ARMS, blocks

ROOT = Path(__file__).resolve().parents[2]


def test_every_arm_has_a_name_of_its_own() -> None:
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_blocks_leave_out_the_first_third_and_what_is_left_over() -> None:
    slow = [float(n) for n in range(1, 31)]  # a second each: compiling
    fast = [30 + 0.1 * n for n in range(1, 66)]
    found = blocks(slow + fast)
    assert (found["blocks"], found["median"]) == (6, 0.1)
    with pytest.raises(ValueError, match="12 steps are too few: at least 46"):
        blocks(slow[:12])
    for steps in range(46, 150):
        assert blocks([float(n) for n in range(steps)])["blocks"] >= 3


def test_what_is_waited_for_a_batch_is_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Loader(list[int]):
        batch_sampler = "upstream's"

        def __iter__(self) -> Iterator[int]:
            for batch in super().__iter__():
                clock[0] += 0.5
                yield batch

    def steps(at_hand: bool) -> tuple[list[int], list[float]]:
        waited: list[float] = []
        loader = trainer_rate.Watched(Loader(range(6)), waited, at_hand)
        assert (len(loader), loader.batch_sampler) == (6, "upstream's")
        seen = []
        for batch in loader:
            seen.append(batch)
            clock[0] += 3  # the step, its logging
        return seen, waited

    monkeypatch.setattr(trainer_rate.time, "perf_counter", lambda: clock[0])
    assert steps(at_hand=False) == ([0, 1, 2, 3, 4, 5], [0.5] * 6)
    assert steps(at_hand=True) == ([0, 1, 2, 3, 0, 1], [0.0] * 6)


def test_saves_between_two_batches_are_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    from speculators_patches.step_checkpoints import loaders

    clock, waited, after = [0.0], [], []

    def saved() -> None:
        clock[0] += 7
        after.append(1)

    monkeypatch.setattr(trainer_rate.time, "perf_counter", lambda: clock[0])
    events = loaders.Events(lambda: None, lambda: None, nullcontext, saved)
    below = trainer_rate.Watched(list(range(6)), waited, at_hand=True)
    assert list(loaders.Watched(below, events)) == [0, 1, 2, 3, 0, 1]
    assert waited == [0] * 6
    assert len(after) == 6  # for every batch, those given again included


@pytest.mark.nightly
def test_the_real_trainer_is_timed_with_and_without_the_overlay(tmp_path: Path) -> None:
    out = tmp_path / "rate.json"
    arms = ("upstream, every step logged", "overlay -finite_guard", "overlay, batches at hand")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainer_rate", "--divide", "16", "--tokens", "128",
         "--samples", "12", "--times", "6", "--workers", "1", "--out", str(out),
         *(word for arm in arms for word in ("--arm", arm))],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(out.read_text())["arms"]
    assert [arm["name"] for arm in found] == list(arms)
    for arm in found:
        assert arm["steps"] == 64  # nine tenths of 72 conversations, one a step
        assert arm["step_s"]["blocks"] >= 3
        assert 0 < arm["step_s"]["min"] <= arm["step_s"]["median"] <= arm["step_s"]["max"]
        assert 0 <= arm["waited_s"] < arm["step_s"]["max"]
    assert found[2]["waited_s"] < min(found[0]["waited_s"], found[1]["waited_s"])
    phases = found[0]["phases_s"]
    assert {"queue", "h2d", "fwd", "bwd", "opt", "step"} <= set(phases)
    assert not any("phases_s" in arm for arm in found[1:])  # every tenth step is logged
