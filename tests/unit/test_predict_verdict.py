"""The advice: which of the three, and what it rests on."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.break_even import StepCost
from benchmarks.predict.verdict import FLAGS, LEAVE, TRAIN, judge

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
