"""Break-even costs from arms that accept at random: those that could not be timed are named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import session
from benchmarks.arms import Arm
from benchmarks.bench_setup import Setup
from benchmarks.break_even import StepCost
from benchmarks.schema import ArmSpec
from recipes.vllm_server import ServerSpec

DRAFTER = {"method": "eagle3", "model": "D", "num_speculative_tokens": 4}


def arm(name: str, n: int, **config: Any) -> Arm:
    told = {**DRAFTER, **config} if n else None
    return Arm(ArmSpec(name, n, told), ServerSpec(name, "body", speculative_config=told))


@pytest.mark.parametrize("refused", [{}, {2: "it would draft greedily."}])
def test_an_arm_that_cannot_be_timed_is_named(
    refused: dict[int, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Setup] = []

    def timed(setup: Setup, *_: Any, **__: Any) -> Any:
        asked.append(setup)
        found = SimpleNamespace(requests=(), arms=())
        return SimpleNamespace(run=lambda: found, refused=refused)

    arms = arm("none", 0), arm("d", 4), arm("drawn", 4, draft_sample_method="probabilistic")
    bench = SimpleNamespace(setup=Setup("body", arms, (), temperatures=(0.0, 0.7)), pool=None)
    cost = StepCost(4, 1, 0.01, 0.02, 0.0, arm="d, synthetic")
    monkeypatch.setattr(session, "Bench", timed)
    monkeypatch.setattr(session, "step_costs", lambda *_: [cost])
    costs, how = session._synthetic(bench, tmp_path, lambda *_: None)  # type: ignore[arg-type]
    assert costs == [cost]
    assert asked[0].temperatures == (0.7,), "at 0 nobody draws"
    assert ("not timed so: drawn, synthetic: it would draft greedily." in how) is bool(refused)
