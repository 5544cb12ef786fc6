"""The trainer's memory as `plan` predicts it, against every peak that was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.config import resolve
from recipes.plan_costs import train
from recipes.train_memory import OUTSIDE_BYTES, allocated_bytes, device_bytes

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
MEASURED = [
    found
    for name in ("train_step_h100", "train_step_fused_8192_h200")
    for found in json.loads((RESULTS / f"{name}.json").read_text())["settings"]
]
HELD = 4  # batches that the measurement kept on the device; a trainer has one


def peaks() -> list[Any]:
    return [
        pytest.param(found["setting"], found["memory"], id=found["name"])
        for found in MEASURED
        if "memory" in found
    ]


@pytest.mark.parametrize(("setting", "memory"), peaks())
def test_predicted_within_a_tenth(setting: dict[str, Any], memory: dict[str, int]) -> None:
    tokens, ttt = setting["tokens"], setting["ttt"]
    spare = (HELD - 1) * tokens * 4 * 2816 * 2
    allocated = memory["peak_allocated"] - spare
    device = memory["peak_reserved"] - spare + OUTSIDE_BYTES
    assert allocated_bytes(ttt, tokens) == pytest.approx(allocated, rel=0.1)
    assert device_bytes(ttt, tokens) == pytest.approx(device, rel=0.1)


def test_another_card_which_nothing_was_fitted_to_needs_what_is_predicted() -> None:
    found = json.loads((RESULTS / "train_step_host_h200.json").read_text())["settings"]
    assert len(found) == 6
    spare = (HELD - 1) * 4096 * 4 * 2816 * 2
    for memory in (one["memory"] for one in found):
        device = memory["peak_reserved"] - spare + memory["outside_allocator"]
        assert allocated_bytes(3, 4096) == pytest.approx(
            memory["peak_allocated"] - spare, rel=0.003
        )
        assert device_bytes(3, 4096) == pytest.approx(device, rel=0.02)


def test_every_setting_was_measured() -> None:
    """Three positions, two lengths, two losses; the last of them on an H200."""
    settings = [found["setting"] for found in MEASURED if "memory" in found]
    assert len(settings) == 12
    assert len({(one["ttt"], one["tokens"], one["loss"]) for one in settings}) == 12


def test_plan_says_it() -> None:
    said = {
        ttt: next(
            line
            for line in train(
                resolve("h100", assignments=[f"ttt_steps={ttt}", "seq_len=8192"])[0], "h100"
            )
            if line.startswith("memory:")
        )
        for ttt in (3, 5)
    }
    for ttt, line in said.items():
        assert f"trainer about {device_bytes(ttt, 8192) / 1e9:.1f} GB" in line
