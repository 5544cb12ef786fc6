"""Ways of drafting compared: pairs, signs and the rule, on made-up requests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arms import NO_SPECULATION
from benchmarks.drafting_arms import (
    WAYS,
    against,
    arm_name,
    bench_arguments,
    lines,
    main,
    make_report,
    parser,
)
from benchmarks.predict.evaluate import BLOCK, GREEDY, PROBABILISTIC
from benchmarks.schema import ArmSpec, RequestRow, Results

N = 2
TEXT = (
    "One quiet evening Ubbe went down to the lake and lost a rope, which a small goat brought back "
    "before supper; so both sat on the wet grass, ate pear jam with old bread, talked about far "
    "villages, winter boats, lamps in every window, and walked home under early stars."
)


def row(arm: str, prompt: int, temperature: float, accepted: int, step_s: float) -> RequestRow:
    """Ten verify steps, `accepted` drafts of each; a first token after 10 ms."""
    n = 0 if arm == NO_SPECULATION else N
    counts = tuple(10 * (k < accepted) for k in range(N)) if n else ()
    tokens = 1 + 10 * (1 + accepted) + prompt
    text = " ".join(TEXT.split()[:tokens])
    return RequestRow(
        f"p{prompt}", "w", "short", arm, n, temperature, 1, 0, 0, text, "stop",
        5, tokens, 0.0, 0.01 + 10 * step_s, 0.01, 0.001,
        drafts=10 if n else 0, draft_tokens=10 * n, accepted=counts, counted_by="request",
    )  # fmt: skip


def results(accepted: dict[str, int], step_s: dict[str, float]) -> Results:
    arms = [ArmSpec(NO_SPECULATION, 0)]
    rows = []
    for temperature in (0.0, 0.7):
        rows += [row(NO_SPECULATION, p, temperature, 0, 0.01) for p in range(9)]
        for way in WAYS:
            rows += [
                row(arm_name("d", way), p, temperature, accepted[way], step_s[way])
                for p in range(9)
            ]
    for way, config in WAYS.items():
        drafting = {"method": "eagle3", "model": "D", "num_speculative_tokens": N, **config}
        arms.append(ArmSpec(arm_name("d", way), N, drafting))
    return Results("now", "chat", "B", {}, {}, tuple(arms), tuple(rows))


def prediction(greedy: float, overlap: float) -> dict[str, Any]:
    lengths = {
        way: {"1": {"value": 1.0}, "2": {"value": value}}
        for way, value in ((GREEDY, 2.0), (PROBABILISTIC, 3.0), (BLOCK, 3.5))
    }
    cells = [
        {"workload": "all", "temperature": t, "tokens_a_step": lengths,
         "measures": {"greedy": [greedy], "overlap": [overlap]}}
        for t in (0.0, 0.7)
    ]  # fmt: skip
    return {"softcap": None, "drafters": {"d": {"cells": cells}}}


ACCEPTED = {GREEDY: 1, PROBABILISTIC: 2, "greedy, block": 1, BLOCK: 2}
STEPS = {GREEDY: 0.010, PROBABILISTIC: 0.012, "greedy, block": 0.010, BLOCK: 0.020}


@pytest.fixture
def report() -> dict[str, Any]:
    return make_report(results(ACCEPTED, STEPS), prediction(0.5, 0.6), ["d"], list(WAYS))


def test_each_way_is_compared_with_greedy_drafts(report: dict[str, Any]) -> None:
    found = {(r["way"], r["temperature"]): r for r in report["rows"]}
    assert len(found) == 8
    drawn = found[PROBABILISTIC, 0.7]
    assert drawn["tokens_a_step"]["value"] == 3
    assert drawn["against_greedy"]["tokens_a_step"]["value"] == pytest.approx(1)
    assert drawn["against_greedy"]["step_time_ratio"]["value"] == pytest.approx(1.2)
    assert drawn["ms_a_step"] == pytest.approx(12)
    assert drawn["against_greedy"]["tok_s_ratio"]["value"] > 1
    slow = found[BLOCK, 0.7]["against_greedy"]
    assert slow["tokens_a_step"]["value"] == pytest.approx(1)
    assert slow["tok_s_ratio"]["value"] < 1  # more tokens a step, and still slower
    assert "against_greedy" not in found[GREEDY, 0.7]


def test_what_is_expected_is_read_for_the_way_that_is_served(report: dict[str, Any]) -> None:
    expected = {r["way"]: r["expected_tokens_a_step"] for r in report["rows"]}
    # Greedy drafts are accepted alike by both methods.
    assert expected == {GREEDY: 2.0, PROBABILISTIC: 3.0, "greedy, block": 2.0, BLOCK: 3.5}


@pytest.mark.parametrize(("overlap", "foretold"), [(0.6, PROBABILISTIC), (0.4, GREEDY)])
def test_the_rule_is_held_against_what_was_measured(overlap: float, foretold: str) -> None:
    found = make_report(results(ACCEPTED, STEPS), prediction(0.5, overlap), ["d"], list(WAYS))
    (told,) = found["rule"]  # none at temperature 0
    assert (told["foretold"], told["measured"], told["shown"]) == (foretold, PROBABILISTIC, True)
    assert any(f"{foretold}; measured probabilistic" in line for line in lines(found))


def test_loops_weigh_nothing_and_too_many_of_them_have_no_speed() -> None:
    """One loop in 60 answers is left out on both sides; two of them refuse the arm."""
    found = results(ACCEPTED, STEPS)
    many = [replace(r, prompt_id=f"{r.prompt_id}-{k}") for r in found.requests for k in range(7)]
    looping = {"text": "six " * 75, "finish_reason": "length", "completion_tokens": 96}

    def report(loops: int) -> dict[str, Any]:
        arm = arm_name("d", PROBABILISTIC)
        rows = list(many)
        hit = [k for k, r in enumerate(rows) if r.arm == arm and r.temperature == 0.7][:loops]
        for k in hit:
            rows[k] = replace(rows[k], **looping)
        return make_report(
            replace(found, requests=tuple(rows)), prediction(0.5, 0.6), ["d"], list(WAYS)
        )

    def drawn(told: dict[str, Any]) -> dict[str, Any]:
        return next(r for r in told["rows"] if (r["way"], r["temperature"]) == (PROBABILISTIC, 0.7))

    one, two = report(1), report(2)
    assert (drawn(one)["degenerate"], drawn(one)["against_greedy"]["prompts"]) == (1, 62)
    assert "degenerate" in drawn(two)["refused"]
    assert not {"tok_s", "ms_a_step", "against_greedy"} & set(drawn(two))
    assert two["rule"] == []
    assert any("degenerate" in line for line in lines(two))


def test_only_prompts_of_both_are_compared() -> None:
    mine = [row("a", p, 0.7, 2, 0.01) for p in range(9)]
    base = [row("b", p, 0.7, 1, 0.01) for p in range(4, 12)]
    assert against(mine, base)["prompts"] == 5


def test_every_way_of_every_drafter_is_an_arm(tmp_path: Path) -> None:
    given = ["--body", "B", "--drafter", "d=D", "--drafter", "e=E", "--out", str(tmp_path)]
    argv = bench_arguments(parser().parse_args(given), {"d": "D", "e": "E"})
    arms = [argv[k + 1] for k, word in enumerate(argv) if word == "--arm"]
    assert len(arms) == 8
    name, _, config = arms[3].partition("=")
    assert name == arm_name("d", BLOCK)
    assert json.loads(config) == {
        "method": "eagle3", "model": "D", "num_speculative_tokens": 4,
        "draft_sample_method": "probabilistic", "rejection_sample_method": "block",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "says"), [(["--way", "probabilistic", "--prompts", "2"], "greedy"), ([], "either")]
)
def test_bad_input_is_one_sentence(
    more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--body", "B", "--drafter", "d=D", "--out", str(tmp_path / "out"), *more]
    assert main(given) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
