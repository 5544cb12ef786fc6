"""What acceptance is worth on this machine, before anybody trains for it.

With n drafted tokens a step, a step costs one pass of the body over n + 1 tokens (`verify_s`) and
the drafter's work (`draft_s`), and yields 1 + a_0 + ... + a_(n-1) tokens, a_k being the acceptance
up to position k. Without speculation a step costs `base_s` and yields one. So

    speedup = (1 + sum of a_k) * base_s / (verify_s + draft_s)

and with one conditional acceptance c at every position, a_k = c^(k+1):

    speedup(c) = (1 + c + ... + c^n) * base_s / (verify_s + draft_s)

which rises in c, so the acceptance needed for a speedup is its inverse (found by bisection). The
costs are measured per n and concurrency, with vLLM's synthetic acceptance or from real steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


class BreakEvenError(ValueError):
    """Costs or acceptance that cannot be; the message says which."""


@dataclass(frozen=True)
class StepCost:
    """Seconds a step at one n and concurrency, all requests of the batch together.

    `how` says where the figures are from, for the report. `draft_s` is 0 where only the whole step
    could be timed and stands in `verify_s`. `arm` is the drafter timed.
    """

    n: int
    concurrency: int
    base_s: float
    verify_s: float
    draft_s: float
    how: str = ""
    arm: str = ""

    def __post_init__(self) -> None:
        times = (self.base_s, self.verify_s, self.draft_s)
        if self.n < 1 or not all(map(math.isfinite, times)):
            raise BreakEvenError(f"A step cost needs n >= 1 and finite times, got {self}.")
        if self.base_s <= 0 or self.verify_s <= 0 or self.draft_s < 0:
            raise BreakEvenError(f"A step cost needs times above 0, got {self}.")

    @property
    def relative(self) -> float:
        """A step's cost in steps without speculation."""
        return (self.verify_s + self.draft_s) / self.base_s

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "relative": self.relative, "needed": acceptance_needed(self)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> StepCost:
        names = ("n", "concurrency", "base_s", "verify_s", "draft_s", "how", "arm")
        return cls(**{k: row[k] for k in names if k in row})


def tokens_per_step(conditional: float, n: int) -> float:
    """1 + c + ... + c^n: tokens a step yields at conditional acceptance c (0..1)."""
    if not 0 <= conditional <= 1:
        raise BreakEvenError(f"Acceptance must lie in 0..1, got {conditional}.")
    return sum(conditional**k for k in range(n + 1))


def speedup(cost: StepCost, acceptance: float | Sequence[float]) -> float:
    """Speedup over no speculation.

    Args:
        acceptance: one conditional acceptance for every position, or the unconditional acceptance
            of each of the `cost.n` positions, as vLLM reports it.

    Raises:
        BreakEvenError: outside 0..1, or not `cost.n` positions.
    """
    if isinstance(acceptance, int | float):
        return tokens_per_step(acceptance, cost.n) / cost.relative
    if len(acceptance) != cost.n or not all(0 <= a <= 1 for a in acceptance):
        raise BreakEvenError(f"Expected {cost.n} rates in 0..1, got {list(acceptance)}.")
    return (1 + sum(acceptance)) / cost.relative


def acceptance_needed(cost: StepCost, target: float = 1.0) -> float | None:
    """Conditional acceptance at which `target` is reached; 0 if always, None if never."""
    if speedup(cost, 1.0) < target:
        return None
    low, high = 0.0, 1.0
    if speedup(cost, 0.0) >= target:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if speedup(cost, middle) < target else (low, middle)
    return high


def curve(cost: StepCost, points: int = 51) -> list[tuple[float, float]]:
    """(conditional acceptance, speedup) from 0 to 1, for a plot."""
    return [(k / (points - 1), speedup(cost, k / (points - 1))) for k in range(points)]
