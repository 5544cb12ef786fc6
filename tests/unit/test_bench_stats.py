"""Statistics: intervals cover the truth at their rate, a known difference is found, none is not.

The simulations draw prompts that differ from each other (beta-distributed acceptance, log-normal
speed), as real ones do. Bounds on the rates are five standard errors of the simulation below the
nominal 95 %, less two points for what a bootstrap of 40 prompts is known to lack.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import stats
from benchmarks.choose import Measured, choose_n
from benchmarks.same_distribution import compare_distributions, holm
from benchmarks.stats import Interval, StatsError, prompts_needed
from benchmarks.wording import describe_difference, describe_ratio

RUNS, PROMPTS, DRAWS = 200, 40, 400


def accepted(rng: np.random.Generator, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-prompt drafts, and those accepted at two positions with this conditional share."""
    drafts = rng.poisson(40, len(share)) + 1
    first = rng.binomial(drafts, share)
    return drafts, np.stack([first, rng.binomial(first, share)], axis=1)


def times(rng: np.random.Generator, ratio: float) -> tuple[np.ndarray, ...]:
    """Tokens and seconds of an arm whose speed over the other's is `ratio` in expectation."""
    tokens = rng.gamma(2, 100, PROMPTS) + 5
    base = tokens * rng.lognormal(-4, 0.3, PROMPTS)
    noise = rng.lognormal(0, 0.25, PROMPTS) / math.exp(0.25**2 / 2)
    return tokens, base / ratio * noise, tokens, base


def acceptance_run(rng: np.random.Generator, seed: int) -> Interval:
    share = rng.beta(6, 4, PROMPTS)
    return stats.acceptance(*accepted(rng, share), resamples=DRAWS, seed=seed)[0]


def second_position_run(rng: np.random.Generator, seed: int) -> Interval:
    share = rng.beta(6, 4, PROMPTS)
    return stats.acceptance(*accepted(rng, share), resamples=DRAWS, seed=seed)[1]


def length_run(rng: np.random.Generator, seed: int) -> Interval:
    share = rng.beta(6, 4, PROMPTS)
    return stats.accepted_length(*accepted(rng, share), resamples=DRAWS, seed=seed)


def ratio_run(rng: np.random.Generator, seed: int) -> Interval:
    return stats.rate_ratio(*times(rng, 1.3), resamples=DRAWS, seed=seed)


def difference_run(rng: np.random.Generator, seed: int, gap: float = 0.05) -> Interval:
    """Two arms on the same prompts; the second's acceptance is lower by `gap` on each."""
    share = 0.1 + 0.9 * rng.beta(6, 4, PROMPTS)
    both = *accepted(rng, share), *accepted(rng, share - gap)
    return stats.acceptance_difference(*both, resamples=DRAWS, seed=seed)[0]


BETA_MEAN, BETA_SQUARE = 6 / 10, 6 / 10 * 7 / 11


@pytest.mark.parametrize(
    ("run", "truth"),
    [
        (acceptance_run, BETA_MEAN),
        (second_position_run, BETA_SQUARE),
        (length_run, 1 + BETA_MEAN + BETA_SQUARE),
        (ratio_run, 1.3),
        (difference_run, 0.05),
    ],
)
def test_intervals_cover_the_truth_at_their_rate(
    run: Callable[[np.random.Generator, int], Interval], truth: float
) -> None:
    rng = np.random.default_rng(11)
    covered = sum(r.low <= truth <= r.high for r in (run(rng, k) for k in range(RUNS)))
    slack = 5 * math.sqrt(0.95 * 0.05 / RUNS)
    assert 0.93 - slack <= covered / RUNS <= 0.995


@pytest.mark.parametrize("prompts", [8, 20])
def test_few_prompts_cover_nearly_as_well(monkeypatch: pytest.MonkeyPatch, prompts: int) -> None:
    """8 is the fewest that anything is said about (`FEWEST_PROMPTS`)."""
    monkeypatch.setitem(globals(), "PROMPTS", prompts)
    rng = np.random.default_rng(16)
    for run, truth in ((ratio_run, 1.3), (difference_run, 0.05)):
        covered = sum(r.low <= truth <= r.high for r in (run(rng, k) for k in range(RUNS)))
        assert 0.92 - 4 * math.sqrt(0.95 * 0.05 / RUNS) <= covered / RUNS <= 0.995


def test_no_difference_is_rarely_called_one_and_a_known_one_is_found() -> None:
    rng = np.random.default_rng(12)
    null = [difference_run(rng, k, gap=0.0) for k in range(RUNS)]
    false_alarms = sum(not r.low <= 0 <= r.high for r in null) / RUNS
    assert false_alarms <= 0.07 + 5 * math.sqrt(0.05 * 0.95 / RUNS)
    found = sum(difference_run(rng, k, gap=0.1).low > 0 for k in range(50))
    assert found == 50


def test_the_best_of_four_drafters_worth_nothing_is_rarely_recommended() -> None:
    """They share the base's noise; the plain intervals would recommend one in 8 to 12 %."""
    rng = np.random.default_rng(15)
    plain = recommended = 0
    for k in range(RUNS):
        tokens = rng.gamma(2, 100, PROMPTS) + 5
        seconds = tokens * rng.lognormal(-4, 0.3, PROMPTS)
        base = seconds * rng.lognormal(0, 0.1, PROMPTS)
        rows = [
            Measured("B", n, "w", 1, stats.rate_ratio(
                tokens, seconds * rng.lognormal(0, 0.1, PROMPTS), tokens, base,
                resamples=DRAWS, seed=k))
            for n in (1, 2, 3, 4)
        ]  # fmt: skip
        plain += any(r.speedup.low > 1 for r in rows)
        recommended += choose_n(rows).n > 0
    assert recommended / RUNS <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / RUNS)
    assert plain > recommended


def test_pairing_narrows_the_interval() -> None:
    # Prompts differ much more from each other than the arms do.
    rng = np.random.default_rng(13)
    share = 0.1 + 0.9 * rng.beta(2, 2, PROMPTS)
    mine, base = accepted(rng, share), accepted(rng, share - 0.05)
    paired = stats.acceptance_difference(*mine, *base)[0]
    apart = math.hypot(stats.acceptance(*mine)[0].se, stats.acceptance(*base)[0].se)
    assert paired.se < 0.6 * apart
    shuffled = rng.permutation(PROMPTS)
    wrong = stats.acceptance_difference(*mine, base[0][shuffled], base[1][shuffled])[0]
    assert wrong.value == pytest.approx(paired.value)
    assert wrong.se > 1.5 * paired.se


def test_prompts_needed_gives_the_power_it_promises() -> None:
    rng = np.random.default_rng(14)

    def study(prompts: int, gap: float, seed: int) -> Interval:
        share = 0.1 + 0.9 * rng.beta(6, 4, prompts)
        both = *accepted(rng, share), *accepted(rng, share - gap)
        return stats.acceptance_difference(*both, resamples=300, seed=seed)[0]

    # A pilot large enough that its spread is known; 80 % power is asked for.
    pilot = study(600, 0.0, 0)
    needed = prompts_needed(pilot, difference=0.03)
    assert needed >= 40
    shown = sum(study(needed, 0.03, k).low > 0 for k in range(150)) / 150
    assert 0.65 <= shown <= 0.93  # 80 % and four standard errors
    assert prompts_needed(pilot, 0.02) == pytest.approx(needed * 2.25, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50)), min_size=2,
             max_size=20),
    st.integers(0, 5),
)  # fmt: skip
def test_values_equal_the_plain_ratio_and_lie_in_their_interval(
    rows: list[tuple[int, int, int]], seed: int
) -> None:
    drafts = [d for d, _, _ in rows]
    taken = [(min(d, a), min(d, a, b)) for d, a, b in rows]
    for k, found in enumerate(stats.acceptance(drafts, taken, seed=seed, resamples=200)):
        assert found.value == pytest.approx(sum(t[k] for t in taken) / sum(drafts))
        assert 0 <= found.low <= found.high <= 1
    length = stats.accepted_length(drafts, taken, resamples=50)
    assert length.value == pytest.approx(1 + sum(map(sum, taken)) / sum(drafts))
    again = stats.acceptance(drafts, taken, seed=seed, resamples=200)
    assert again == stats.acceptance(drafts, taken, seed=seed, resamples=200)


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    # Drafts all equal: acceptance is a mean over prompts, whose t interval is known.
    taken = np.random.default_rng(4).integers(40, 90, 30)
    found = stats.acceptance(np.full(30, 100), taken[:, None], resamples=20000)[0]
    half = 2.045 * np.std(taken, ddof=1) / math.sqrt(30) / 100
    assert found.high - found.value == pytest.approx(half, rel=0.06)
    assert found.value - found.low == pytest.approx(half, rel=0.06)


@pytest.mark.parametrize(("degrees", "expected"), [(7, 2.3646), (19, 2.0930), (39, 2.0227)])
def test_students_quantile(degrees: int, expected: float) -> None:
    assert stats._student(0.975, degrees) == pytest.approx(expected, abs=2e-3)


def test_prompts_that_all_agree_are_flagged_and_said() -> None:
    found = stats.acceptance_difference([10] * 40, [[10]] * 40, [10] * 40, [[10]] * 40)[0]
    assert found.flat
    assert "may have been missed" in describe_difference("position 0", found)


def test_conditional_acceptance_that_nothing_reached_has_no_value() -> None:
    first, second = stats.conditional_acceptance([10] * 9, [[0, 0]] * 9)
    assert first.value == 0
    assert math.isnan(second.value)
    with pytest.raises(StatsError, match="without a value"):
        prompts_needed(second)


def test_data_that_does_not_fit_is_refused() -> None:
    with pytest.raises(StatsError, match="at least 2 prompts"):
        stats.acceptance([10], [[5]])
    with pytest.raises(StatsError, match="not unconditional counts"):
        stats.acceptance([10, 10], [[5, 6], [5, 5]])
    with pytest.raises(StatsError, match="same prompts"):
        stats.rate_ratio([1, 2], [1, 2], [1, 2, 3], [1, 2, 3])
    with pytest.raises(StatsError, match="above 0"):
        stats.rate_ratio([1, 2], [1, 0], [1, 2], [1, 2])
    with pytest.raises(StatsError, match="same prompts"):
        stats.acceptance_difference([9, 9], [[1], [1]], [9], [[1]])
    with pytest.raises(StatsError, match="expected"):
        stats.acceptance([9, 9], [[1]])


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(1.1, 1.3, "faster"), (0.7, 0.9, "SLOWER"), (0.9, 1.2, "no difference shown")],
)
def test_a_ratio_in_words(low: float, high: float, says: str) -> None:
    seen = Interval((low + high) / 2, low, high, (high - low) / 4, 40)
    assert says in describe_ratio("n = 4", seen)
    few = Interval(seen.value, low, high, seen.se, 5)
    assert "too few prompts (5)" in describe_ratio("n = 4", few)


def test_a_difference_in_words() -> None:
    words = describe_difference("position 0", Interval(0.01, -0.02, 0.04, 0.015, 40))
    assert "no difference shown (+1.0 points, 95 % interval -2.0 to +4.0, 40 prompts)" in words
    assert "takes about 177 prompts" in words
    assert "higher" in describe_difference("x", Interval(0.03, 0.01, 0.05, 0.01, 40))
    assert "LOWER" in describe_difference("x", Interval(-0.03, -0.05, -0.01, 0.01, 40))


WORDS = [f"w{k}" for k in range(300)]
ZIPF = 1 / np.arange(1, 301)


def answers(rng: np.random.Generator, mean: float, tilt: float = 0.0) -> list[str]:
    """Texts whose words follow Zipf's law; `tilt` makes every second word likelier."""
    weights = ZIPF * (1 + tilt * (np.arange(300) % 2))
    weights /= weights.sum()
    lengths = rng.poisson(mean, 40) + 5
    return [" ".join(rng.choice(WORDS, size=k, p=weights)) for k in lengths]


def test_equal_distributions_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(21)
    alarms = sum(
        compare_distributions(answers(rng, 60), answers(rng, 60), seed=k, swaps=400).differs
        for k in range(40)
    )
    assert alarms <= 7  # 5 % of 40 is 2; 8 or more has a chance of 0.1 %


@pytest.mark.parametrize(("mean", "tilt", "which"), [(90, 0.0, "tokens"), (60, 1.0, "word counts")])
def test_other_lengths_and_other_words_are_found(mean: float, tilt: float, which: str) -> None:
    rng = np.random.default_rng(22)
    found = compare_distributions(answers(rng, mean, tilt), answers(rng, 60))
    assert found.differs
    assert "DIFFER" in found.text()
    assert next(t for t in found.tests if t.name == which).p_adjusted < 0.05
    same = answers(rng, 60)
    assert "No difference" in compare_distributions(same, same).text()


def test_distributions_need_the_same_prompts() -> None:
    with pytest.raises(StatsError, match="9 and 8"):
        compare_distributions(["a"] * 9, ["a"] * 8)
    with pytest.raises(StatsError, match="too few"):
        compare_distributions(["a"] * 7, ["a"] * 7)


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9]) == [0.9]
