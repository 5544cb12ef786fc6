"""Surprise minus entropy is 0 on average for what p says, and not for what it does not say."""

from __future__ import annotations

import pytest

from benchmarks.predict.distributions import Sampling
from benchmarks.schema import RequestRow
from benchmarks.surprise import Excess, by_arm, excess

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("flatter", "sign"), [(1.0, 0), (1.5, 1), (0.6, -1)])
def test_only_what_is_drawn_from_the_body_has_no_excess(flatter: float, sign: int) -> None:
    """Tokens drawn at another temperature are too surprising, or too dull."""
    torch.manual_seed(0)
    logits = torch.randn(20_000, 9) * 2
    tokens = torch.multinomial((logits / (0.7 * flatter)).softmax(-1), 1)[:, 0]
    found = excess(logits, tokens, Sampling(0.7))
    mean = found.sum / found.tokens
    assert abs(mean) < 0.03 if sign == 0 else mean * sign > 0.1
    assert found.tokens == 20_000


def test_arms_are_told_apart_with_an_error_over_answers() -> None:
    def row(arm: str, prompt: str, temperature: float) -> RequestRow:
        return RequestRow(prompt, "w", "short", arm, 4, temperature, 1, 0, 0, "t", "stop", 1, 2,
                          0.0, 1.0, token_ids=(1, 2))  # fmt: skip

    rows = [row(a, f"p{k}", t) for a in ("a", "b") for k in range(4) for t in (0.0, 0.7)]
    found = by_arm(rows, lambda r: Excess(float(r.arm == "b") + (r.prompt_id == "p0"), 2, 1, 0))
    assert [(f["arm"], f["temperature"], f["answers"]) for f in found] == [
        ("a", 0.7, 4), ("b", 0.7, 4),
    ]  # fmt: skip
    a, b = found
    assert (a["excess_a_token"], b["excess_a_token"]) == (1 / 8, 5 / 8)
    assert a["se"] == pytest.approx(b["se"]) == pytest.approx((0.25 * 4) ** 0.5 / 8)
    assert a["rare"] == 4
