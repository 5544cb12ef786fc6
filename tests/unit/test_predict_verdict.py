"""The advice: which of the three, and what it rests on."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.break_even import StepCost
from benchmarks.predict.evaluate import Row
from benchmarks.predict.summary import kept_a_step
from benchmarks.predict.verdict import FLAGS, LEAVE, TRAIN, judge
from benchmarks.predict.walk import Counts

CEILING = "greedy, best possible"


def interval(value: float, width: float = 0.1) -> dict[str, Any]:
    return {"value": value, "low": value - width, "high": value + width, "prompts": 40}


def cell(greedy: float, probabilistic: float, best: float = 4.5, t: float = 0.7) -> dict[str, Any]:
    lengths = {"greedy": greedy, "probabilistic": probabilistic, CEILING: best}
    return {
        "temperature": t,
        "workload": "all",
        "tokens_a_step": {
            way: {n: interval(1 + (value - 1) * n / 4) for n in (1, 2, 3, 4)}
            for way, value in lengths.items()
        },
        "probabilistic_minus_greedy": {
            n: interval((probabilistic - greedy) * n / 4, 0.05) for n in (1, 2, 3, 4)
        },
    }


def costs(relative: float) -> dict[tuple[str, int], StepCost]:
    return {("greedy", n): StepCost(n, 1, 1.0, relative, 0.0) for n in (1, 2, 3, 4)}


@pytest.mark.parametrize(
    ("given", "cost", "verdict", "says"),
    [
        (cell(2.0, 2.0), {}, TRAIN, "tokens a step"),
        (cell(2.0, 2.0), costs(1.5), TRAIN, "times the speed"),
        (cell(2.5, 3.4), {}, FLAGS, "probabilistic drafts, n = 4"),
        (cell(4.8, 4.8, best=4.9), costs(1.5), LEAVE, "not worth hours"),
        # Speculation loses here, but a trained drafter would not.
        (cell(1.2, 1.2), costs(2.0), FLAGS, "no speculation"),
        # Three tokens of a greedy draft are all that this body's own doubt allows.
        (cell(2.9, 2.0, best=3.0), costs(1.5), LEAVE, "not worth hours"),
    ],
)
def test_the_three_verdicts(
    given: dict[str, Any], cost: dict[tuple[str, int], StepCost], verdict: str, says: str
) -> None:
    found = judge(given, 4, "greedy", cost)
    assert found.verdict == verdict, found.reason
    assert says in found.reason
    assert "T = 0.7" in found.reason


def test_flags_are_not_advised_on_a_difference_that_is_not_shown() -> None:
    given = cell(2.5, 2.7)
    given["probabilistic_minus_greedy"][4] = interval(0.2, 0.3)
    assert judge(given, 4, "greedy", {}).verdict == TRAIN


def test_another_n_is_advised_only_by_cost() -> None:
    """Without costs a deeper draft always has more tokens a step: n is left alone."""
    assert judge(cell(2.0, 2.0), 2, "greedy", {}).best.n == 2
    deep = {("greedy", n): StepCost(n, 1, 1.0, 1.1, 0.0) for n in (1, 2, 3, 4)}
    assert judge(cell(3.0, 3.0), 2, "greedy", deep).best.n == 4


def test_what_training_is_supposed_to_close_is_said() -> None:
    more = judge(cell(2.0, 2.0), 4, "greedy", {}, closes=0.8)
    less = judge(cell(2.0, 2.0), 4, "greedy", {}, closes=0.2)
    assert more.trained.length > less.trained.length
    assert "80%" in more.reason


def test_what_is_accepted_behind_an_answer_s_end_is_no_speed() -> None:
    given = cell(4.0, 4.0)
    whole = judge(given, 4, "greedy", costs(2.0)).now
    given["kept_a_step"] = {
        way: {n: 0.75 * found["value"] for n, found in lengths.items()}
        for way, lengths in given["tokens_a_step"].items()
    }
    kept = judge(given, 4, "greedy", costs(2.0)).now
    assert (whole.speed, kept.speed) == (pytest.approx(2.0), pytest.approx(1.5))
    assert kept.length == whole.length


def test_kept_tokens_are_the_answers_own() -> None:
    """Of 11 tokens the first comes from the prompt; two steps of five give the other ten."""
    ways = {"greedy": (Counts(2.0, (2.0,)), Counts(2.0, (2.0, 2.0)))}
    row = Row("p", "w", 0.7, 0, 11, 10, ways, {}, (0,), (0.0,), (0.0,), (), ())
    assert kept_a_step([row, row], "greedy", 2) == 5.0
