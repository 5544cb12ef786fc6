"""What makes a checkpoint the best: upstream's validation loss, or what vLLM would accept.

Expected tokens a step, 1 + the sum over positions of acceptance up to there, is what a server's
speed is proportional to. With greedy drafts it comes from `accept_k` (patch accuracy_denominators),
with drafts drawn from the drafter's distribution from `expect_k` (patch expected_acceptance).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

FLAG = "--best-by"
LOSS = "loss"
# Kind -> the metric whose positions are summed; None: the loss itself.
KINDS: dict[str, str | None] = {
    LOSS: None,
    "greedy-tokens": "accept",
    "probabilistic-tokens": "expect",
}


def value(metrics: Mapping[str, float], kind: str) -> float | None:
    """The lower the better; None where validation did not say.

    Args:
        metrics: of upstream's `val_epoch`, with names that end in `_epoch`.
    """
    name = KINDS[kind]
    if name is None:
        return metrics.get("loss_epoch")
    found = []
    for position in itertools.count():
        rate = metrics.get(f"{name}_{position}_epoch")
        if rate is None:
            break
        found.append(rate)
    return -(1.0 + sum(found)) if found else None


def told(reached: float, kind: str) -> str:
    """The value as the log says it."""
    if KINDS[kind] is None:
        return f"loss {reached:.6f}"
    return f"{kind}: {-reached:.4f} a step"
