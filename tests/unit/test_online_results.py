"""What is said about extraction and training on one GPU, against the files it was read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.online_pipeline import compared
from recipes import plan_costs

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
SAID = (RESULTS.parent / "README.md").read_text()


def shares() -> dict[float, dict[str, Any]]:
    """Each share's record; .4 from the run in which its server did not end."""
    found = {}
    for name in ("online_pipeline_h200", "online_pipeline_share04_h200"):
        record = json.loads((RESULTS / f"{name}.json").read_text())
        assert record["device"] == "NVIDIA H200"
        assert record["settings"]["divide"] == 1
        found |= {one["share"]: one for one in record["shares"]}
    return dict(sorted(found.items()))


@pytest.mark.parametrize("share", [0.4, 0.55, 0.7])
def test_the_row_of_a_share_is_the_file(share: float) -> None:
    one = shares()[share]
    arms = one["arms"]
    rates = [
        f"{arms[name]['tokens_s'] / 1000:.1f}"
        for name in ("training", "extraction", "in turn", "side by side")
    ]
    beside = arms["side by side"]
    row = [
        f"{share:g}", *rates, f"{beside['conversations_s']:.1f}",
        f"{beside['waiting_share']:.2f}".removeprefix("0"), f"{1000 * beside['step_s']:.0f} ms",
        f"{one['foretold_tokens_s'] / 1000:.1f} ({100 * one['foretold_error']:.0f} %)",
    ]  # fmt: skip
    assert f"| {' | '.join(row)} |" in SAID.splitlines()
    assert all(arm["lost"] == 0 for arm in arms.values())
    assert {name: one[name] for name in compared(arms)} == compared(arms)


def test_what_is_said_of_all_shares() -> None:
    found = list(shares().values())
    loads = ", ".join(f"{one['producer_load']:.2f}".removeprefix("0") for one in found[:2])
    assert f"({loads} and {found[2]['producer_load']:.2f}".replace(" 0.", " .") in SAID
    hidden = [round(one["hidden_by_prefetch"], 2) for one in found]
    assert (min(hidden), max(hidden)) == (0.92, 0.93)
    alone = [one["arms"]["in turn"] for one in found]
    rows = [arm["waiting_share"] / arm["conversations_s"] for arm in alone]
    assert f"takes {min(rows):.2f} to {max(rows):.2f} s".replace(" 0.", " .") in SAID
    held = [f"{one['device_bytes_used'] / 1e9:.1f}" for one in found]
    assert f"{held[0]}, {held[1]} and {held[2]} GB" in SAID


def test_what_plan_takes_for_conversations_beside_extraction() -> None:
    beside = [one["arms"]["side by side"]["conversations_s"] for one in shares().values()]
    assert (min(beside), max(beside)) == pytest.approx(plan_costs.ONLINE_CONVERSATIONS_S, abs=0.05)
    for name in ("online_pipeline_h200", "online_pipeline_share04_h200"):
        settings = json.loads((RESULTS / f"{name}.json").read_text())["settings"]
        assert settings["workers"] == plan_costs.ONLINE_WORKERS
        assert settings["length"] == round(plan_costs.PUBLISHED_TOKENS_A_SAMPLE)
        assert settings["fp8_weights"]
    alone = [one["arms"]["extraction"]["tokens_s"] for one in shares().values()]
    assert (min(alone), max(alone)) == pytest.approx(plan_costs.PRODUCER_TOKENS_S, abs=50)


def test_the_share_at_which_vllm_ended_is_kept() -> None:
    record = json.loads((RESULTS / "online_pipeline_h200.json").read_text())
    first = record["shares"][0]
    assert first["share"] == 0.4
    assert first["error"] == "The server did not answer after the arm 'extraction'."
