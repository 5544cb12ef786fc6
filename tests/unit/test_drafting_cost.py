"""CPU time by step: read from /proc, and compared round by round."""

from __future__ import annotations

import os
import time

import pytest

from benchmarks.drafting_arms import WAYS
from benchmarks.drafting_cost import cpu_seconds, summarise
from benchmarks.predict.evaluate import GREEDY, PROBABILISTIC


def test_cpu_seconds_are_those_of_the_process() -> None:
    before, began = cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() - began < 0.3:
        sum(range(1000))
    took = cpu_seconds([os.getpid()]) - before
    assert took == pytest.approx(time.process_time() - began, abs=0.1)


def test_a_step_that_takes_more_is_told_so_though_it_gives_more_tokens() -> None:
    rounds = {way: [(1.0, 100.0, 300.0 + k) for k in range(9)] for way in WAYS}
    rounds[PROBABILISTIC] = [(1.5, 100.0, 400.0 + k) for k in range(9)]
    found = {row["way"]: row for row in summarise(rounds)}
    assert found[GREEDY]["cpu_ms_a_step"] == 10
    assert "step_ratio" not in found[GREEDY]
    assert found[PROBABILISTIC]["step_ratio"]["value"] == pytest.approx(1.5)
    assert 1 < found[PROBABILISTIC]["token_ratio"]["value"] < 1.5
