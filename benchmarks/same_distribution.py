"""At T > 0 speculation must not change what is said: a test on two arms' answers.

Answers are random there, so they cannot be compared word by word. But under losslessness the two
arms' answers to a prompt are draws from one distribution, and it does not matter which arm is
called which. So the labels are swapped at random within prompts (a paired permutation test), and
each statistic's difference is compared with those of the swaps. p-values are Holm's, so that
the family of statistics has an error rate of 5 % together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.stats import StatsError
from benchmarks.text_measures import compressed_share, units

LEVEL = 0.05
# A bench makes many of these tests, so one at LEVEL is reported and no more; below this adjusted p
# an arm is not recommended.
SURE = 0.002
SWAPS = 4000
# Most frequent units whose shares are compared; rarer ones add noise and no power.
_COMMON = 200


@dataclass(frozen=True)
class StatisticTest:
    """One statistic: both arms' means, and the chance of such a difference without any cause."""

    name: str
    mean: float
    base_mean: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class DistributionTest:
    """All statistics; `differs` when any adjusted p is below `LEVEL`."""

    prompts: int
    tests: tuple[StatisticTest, ...]

    @property
    def differs(self) -> bool:
        return any(t.p_adjusted < LEVEL for t in self.tests)

    @property
    def changes_answers(self) -> bool:
        """Whether the difference is too sure to recommend the arm."""
        return any(t.p_adjusted < SURE for t in self.tests)

    def text(self) -> str:
        if self.differs:
            which = ", ".join(
                f"{t.name} {t.mean:.3g} against {t.base_mean:.3g} (p = {t.p_adjusted:.3g})"
                for t in self.tests
                if t.p_adjusted < LEVEL
            )
            return f"The answers DIFFER from those without speculation: {which}."
        least = min(t.p_adjusted for t in self.tests)
        return (
            f"No difference from the answers without speculation shown on {self.prompts} prompts "
            f"(smallest adjusted p = {least:.2g}); a small one would need more prompts."
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "differs": self.differs,
            "changes_answers": self.changes_answers,
            "text": self.text(),
        }


def compare_distributions(
    texts: Sequence[str],
    base_texts: Sequence[str],
    lengths: Sequence[int] | None = None,
    base_lengths: Sequence[int] | None = None,
    *,
    seed: int = 0,
    swaps: int = SWAPS,
) -> DistributionTest:
    """Test two arms' answers to the same prompts, in the same order.

    Args:
        lengths: tokens of each answer; counted in `units` of the text when left out.

    Raises:
        StatsError: the arms hold different numbers of answers, or fewer than 8.
    """
    if len(texts) != len(base_texts):
        raise StatsError(f"Arms hold {len(texts)} and {len(base_texts)} answers; need the same.")
    if len(texts) < 8:
        raise StatsError(f"{len(texts)} prompts are too few for a test of distributions; need 8.")
    cuts = [units(t) for t in texts]
    base_cuts = [units(t) for t in base_texts]
    mine = lengths if lengths is not None else [len(c) for c in cuts]
    base = base_lengths if base_lengths is not None else [len(c) for c in base_cuts]
    scalars = {
        "tokens": (mine, base),
        "distinct share": ([_distinct(c) for c in cuts], [_distinct(c) for c in base_cuts]),
        "compressed share": ([_size(t) for t in texts], [_size(t) for t in base_texts]),
    }
    # +1 keeps a prompt's labels, -1 swaps them; row 0 is what was seen.
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(swaps + 1, len(texts)))
    signs[0] = 1
    found = []
    for name, (a, b) in scalars.items():
        x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        statistic = np.abs(signs @ (x - y))
        found.append((name, float(x.mean()), float(y.mean()), _p(statistic)))
    counts, base_counts = _histograms(cuts, base_cuts)
    # Sum of absolute differences of word counts, each on the scale of its own noise.
    scale = np.sqrt(np.maximum((counts + base_counts).sum(axis=0), 1))
    statistic = (np.abs(signs @ (counts - base_counts)) / scale).sum(axis=1)
    found.append(("word counts", float(counts.sum()), float(base_counts.sum()), _p(statistic)))
    adjusted = holm([p for *_, p in found])
    return DistributionTest(
        prompts=len(texts),
        tests=tuple(StatisticTest(*row, q) for row, q in zip(found, adjusted, strict=True)),
    )


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(ps)), key=lambda k: ps[k])
    adjusted, running = [0.0] * len(ps), 0.0
    for rank, k in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[k]))
        adjusted[k] = running
    return adjusted


def _p(statistic: NDArray[np.float64]) -> float:
    """Share of the swaps at least as far off as what was seen (row 0, counted as well)."""
    return float(np.mean(statistic >= statistic[0] * (1 - 1e-12)))


def _distinct(cut: Sequence[str]) -> float:
    """Different units among the first 100: a share that does not fall with length."""
    return len(set(cut[:100])) / max(1, len(cut[:100]))


def _size(text: str) -> float:
    share = compressed_share(text, shortest=1)
    return 1.0 if share is None else share


def _histograms(
    cuts: Sequence[Sequence[str]], base_cuts: Sequence[Sequence[str]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts of the most frequent units, each of shape (prompts, units)."""
    total = Counter(u for cut in (*cuts, *base_cuts) for u in cut)
    column = {u: k for k, (u, _) in enumerate(total.most_common(_COMMON))}

    def count(all_cuts: Sequence[Sequence[str]]) -> NDArray[np.float64]:
        table = np.zeros((len(all_cuts), max(1, len(column))))
        for row, cut in enumerate(all_cuts):
            for unit in cut:
                if unit in column:
                    table[row, column[unit]] += 1
        return table

    return count(cuts), count(base_cuts)
