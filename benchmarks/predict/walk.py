"""From acceptance at each start of a text to what a bench counts.

For a text that the body itself drew, the chance that a drafted token stands, given what was
written, is exact: with greedy drafts it stands if and only if it is what was written; with drafts
drawn from q, the written token t was an accepted draft with probability min(1, q(t) / p(t)).
(Summed over texts: sum_t p(t) min(1, q(t) / p(t)) = sum_t min(p(t), q(t)).) So the verify steps
that produce this text form a Markov chain over its positions, and expected counts follow without
sampling, in vLLM's sense: steps start where the one before ended, not everywhere alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Expected verify steps of an answer, and accepted drafts by position (unconditional)."""

    drafts: float
    accepted: tuple[float, ...]

    @property
    def length(self) -> float:
        """Tokens a step, the body's own included."""
        return 1 + sum(self.accepted) / self.drafts


def standing(log_ratio: Array) -> Array:
    """min(1, q / p) of the written tokens, from log q - log p of any shape."""
    with np.errstate(over="ignore"):
        return np.minimum(1.0, np.exp(log_ratio))


def block_standing(log_ratio: Array) -> Array:
    """Chance that a step accepts up to each depth with block verification, relative to the text.

    Block verification accepts the first i drafts with probability min over suffixes of the product
    of p / q (Sun et al. 2024, arXiv:2403.10444); weighted back to texts drawn from the body that is
    exp(min over prefixes of the sum of log q - log p). Never below `standing`'s product.

    Args:
        log_ratio: [starts, n].

    Returns:
        [starts, n], unconditional.
    """
    return np.asarray(np.exp(np.minimum(0.0, np.minimum.accumulate(log_ratio.cumsum(1), axis=1))))


def count(accepts: Array) -> Counts:
    """Expected counts over one text.

    Args:
        accepts: [starts, n] float64: at each start (every token of the answer but the last, in
            order) the chance that the draft k deep stands, given that those before it stand. A
            draft that leads behind the answer's end has one too: vLLM counts it.

    Returns:
        The counts of the chain that starts at the first token, which the prompt's pass gives.
    """
    return count_reaching(np.asarray(np.cumprod(accepts, axis=1), dtype=np.float64))


def count_reaching(reach: Array) -> Counts:
    """The same from the chance, at each start, that a step accepts so many drafts or more.

    Args:
        reach: [starts, n] float64, not increasing along a row; what `block_standing` gives.
    """
    starts, n = reach.shape
    visits = np.zeros(starts + n + 1)
    visits[0] = 1.0
    for s in range(starts):
        here = visits[s]
        if here == 0.0:
            continue
        below = np.concatenate([[1.0], reach[s]])
        for j in range(n + 1):
            stops_here = below[j] - (below[j + 1] if j < n else 0.0)
            visits[s + j + 1] += here * stops_here
    weight = visits[:starts]
    return Counts(float(weight.sum()), tuple(float(a) for a in weight @ reach))
