"""What an interval allows to be said, in words. A difference that is not shown is called that."""

from __future__ import annotations

from benchmarks.stats import FEWEST_PROMPTS, Interval, prompts_needed


def describe_ratio(what: str, seen: Interval) -> str:
    """A sentence on a ratio of speeds, where 1 means no difference."""
    if seen.prompts < FEWEST_PROMPTS:
        return f"{what}: {_too_few(seen)} ({seen.value:.2f}x)."
    span = f"{seen.value:.2f}x, 95 % interval {seen.low:.2f} to {seen.high:.2f}"
    if seen.low > 1:
        return f"{what}: faster ({span}, {seen.prompts} prompts)."
    if seen.high < 1:
        return f"{what}: SLOWER ({span}, {seen.prompts} prompts)."
    return (
        f"{what}: no difference shown ({span}, {seen.prompts} prompts). To show one of 2 % takes "
        f"about {prompts_needed(seen)} prompts."
    )


def describe_difference(what: str, seen: Interval) -> str:
    """A sentence on a difference of acceptance, in points of 1/100; 0 means none."""
    if seen.prompts < FEWEST_PROMPTS:
        return f"{what}: {_too_few(seen)} ({100 * seen.value:+.1f} points)."
    span = (
        f"{100 * seen.value:+.1f} points, 95 % interval {100 * seen.low:+.1f} to "
        f"{100 * seen.high:+.1f}"
    )
    if seen.flat:
        return (
            f"{what}: the same on all {seen.prompts} prompts ({100 * seen.value:+.1f} points); "
            f"what happens in fewer than 3 of {seen.prompts} prompts may have been missed."
        )
    if seen.low > 0 or seen.high < 0:
        direction = "higher" if seen.low > 0 else "LOWER"
        return f"{what}: {direction} ({span}, {seen.prompts} prompts)."
    return (
        f"{what}: no difference shown ({span}, {seen.prompts} prompts). To show one of 2 points "
        f"takes about {prompts_needed(seen)} prompts."
    )


def _too_few(seen: Interval) -> str:
    return f"too few prompts ({seen.prompts}) to tell; at least {FEWEST_PROMPTS} are needed"
