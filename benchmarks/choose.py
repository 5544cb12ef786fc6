"""Which n to serve with, from what was measured; or not to speculate at all.

Per workload and concurrency the candidate is the n with the highest speedup; among those that are
not shown to be slower than it (its point lies in their interval) the smallest n is taken, which
needs less memory and loses less when the traffic is harder than the bench. It is recommended only
if its interval lies above 1, once widened for the number of n tried (Bonferroni): of four drafters
worth nothing the best one's plain 95 % interval lies above 1 in one bench of ten (simulated). Arms
that may not be trusted (degenerate text, other answers than without speculation, a server that
failed) are no candidates, however fast.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from benchmarks.stats import CONFIDENCE, FEWEST_PROMPTS, Interval

# Above the highest concurrency measured, vLLM's schedule needs an end of its last range.
MAX_BATCH = 1024


class ChoiceError(ValueError):
    """Measurements from which nothing can be chosen; the message says why."""


@dataclass(frozen=True)
class Measured:
    """One arm at one n: its speed over no speculation on the same prompts; `barred`: why not to
    serve with it whatever its speed, "" if nothing is against it."""

    arm: str
    n: int
    workload: str
    concurrency: int
    speedup: Interval
    barred: str = ""


@dataclass(frozen=True)
class Choice:
    """The n for one workload and concurrency; 0 means "do not speculate here"."""

    arm: str
    workload: str
    concurrency: int
    n: int
    speedup: Interval | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose_n(rows: Sequence[Measured]) -> Choice:
    """The best n of one arm on one workload at one concurrency.

    Raises:
        ChoiceError: no rows, or rows of several arms, workloads or concurrencies.
    """
    keys = {(r.arm, r.workload, r.concurrency) for r in rows}
    if len(keys) != 1:
        raise ChoiceError(f"Choose for one arm, workload and concurrency at a time, got {keys}.")
    ((arm, workload, concurrency),) = keys

    def nothing(why: str) -> Choice:
        return Choice(arm, workload, concurrency, 0, None, f"do not speculate here: {why}")

    usable = [r for r in rows if r.n > 0 and not r.barred and r.speedup.value > 0]
    note = _barred(rows)
    if not usable:
        return nothing(f"no arm with usable answers{note}")
    if min(r.speedup.prompts for r in usable) < FEWEST_PROMPTS:
        return nothing(f"fewer than {FEWEST_PROMPTS} prompts show nothing{note}")
    best = max(usable, key=lambda r: r.speedup.value)
    if low_of_several(best.speedup, len(usable)) <= 1:
        verdict = "is slower" if best.speedup.high < 1 else "no speedup is shown"
        chance = f", as the best of {len(usable)} by chance may" if best.speedup.low > 1 else ""
        return nothing(
            f"even at n = {best.n} {verdict} ({best.speedup.value:.2f}x, 95 % interval "
            f"{best.speedup.low:.2f} to {best.speedup.high:.2f}{chance}){note}"
        )
    equal = [
        r for r in usable
        if r.speedup.high >= best.speedup.value and low_of_several(r.speedup, len(usable)) > 1
    ]  # fmt: skip
    taken = min(equal, key=lambda r: r.n)
    reason = (
        f"{taken.speedup.value:.2f}x (95 % interval {taken.speedup.low:.2f} to "
        f"{taken.speedup.high:.2f})"
    )
    if taken.n != best.n:
        reason += f"; n = {best.n} reached {best.speedup.value:.2f}x, not shown to be faster"
    return Choice(arm, workload, concurrency, taken.n, taken.speedup, reason + note)


def low_of_several(seen: Interval, tried: int) -> float:
    """The interval's lower end at the confidence that the best of `tried` needs."""
    tail = (1 - CONFIDENCE) / 2
    z = NormalDist().inv_cdf
    return seen.value - (seen.value - seen.low) * z(1 - tail / max(1, tried)) / z(1 - tail)


def _barred(rows: Sequence[Measured]) -> str:
    reasons = dict.fromkeys(r.barred for r in rows if r.barred)
    parts = [
        f"n = {', '.join(str(n) for n in sorted({r.n for r in rows if r.barred == why}))} "
        f"refused: {why}"
        for why in reasons
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def choose_all(rows: Sequence[Measured]) -> list[Choice]:
    """One choice for every arm, workload and concurrency among `rows`, in their order."""
    groups: dict[tuple[str, str, int], list[Measured]] = {}
    for row in rows:
        groups.setdefault((row.arm, row.workload, row.concurrency), []).append(row)
    return [choose_n(group) for group in groups.values()]


def speculative_config(base: Mapping[str, Any], choices: Sequence[Choice]) -> dict[str, Any] | None:
    """The `--speculative-config` for one arm on one workload, over all concurrencies measured.

    Where n differs with concurrency, vLLM's schedule by batch size is written: inclusive ranges
    that meet halfway (geometrically) between two measured concurrencies, and 0 where speculation
    does not pay. vLLM wants a schedule with n > 0 somewhere; if it pays nowhere the result is None.

    Args:
        base: the arm's config; its `num_speculative_tokens` is replaced.
        choices: of that arm on that workload, one a concurrency.

    Raises:
        ChoiceError: no choices, two of one concurrency, or several arms or workloads.
    """
    points = sorted(choices, key=lambda c: c.concurrency)
    distinct = {c.concurrency for c in points}
    if not points or len(distinct) != len(points) or len({(c.arm, c.workload) for c in points}) > 1:
        raise ChoiceError("A config needs one choice a concurrency, of one arm on one workload.")
    deepest = max(c.n for c in points)
    if deepest == 0:
        return None
    config = {k: v for k, v in base.items() if k != "num_speculative_tokens_per_batch_size"}
    config["num_speculative_tokens"] = deepest
    if len({c.n for c in points}) > 1:
        config["num_speculative_tokens_per_batch_size"] = _schedule(points)
    return config


def _schedule(points: Sequence[Choice]) -> list[list[int]]:
    ranges: list[list[int]] = []
    start = 1
    for k, point in enumerate(points):
        last = k + 1 == len(points)
        end = MAX_BATCH if last else int((point.concurrency * points[k + 1].concurrency) ** 0.5)
        end = max(end, point.concurrency)
        if ranges and ranges[-1][2] == point.n:
            ranges[-1][1] = end
        else:
            ranges.append([start, end, point.n])
        start = end + 1
    return ranges


def as_flag(config: Mapping[str, Any] | None) -> str:
    """What to type: the flag with its JSON quoted for a shell, or the advice to leave it out."""
    if config is None:
        return "do not speculate here (no --speculative-config)"
    text = json.dumps(config, ensure_ascii=False).replace("'", "'\\''")
    return f"--speculative-config '{text}'"
