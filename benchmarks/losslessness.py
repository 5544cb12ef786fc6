"""At T = 0 speculation must not change a word: each arm against the arm without speculation.

Rejection sampling at T = 0 accepts a draft exactly when it is the body's own choice, so answers
should be equal token by token. They need not be bit for bit on real hardware: verifying n + 1
tokens at once multiplies matrices of another shape, sums in another order, and may flip a near tie
between two tokens. After a flip the answers are different texts. So what counts is the FIRST
divergence, and the gap between the body's two best tokens there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from benchmarks.text_measures import units

# A gap (logit, or log-probability: the same difference) below which rounding can flip the order.
# bf16 has 8 bits of mantissa: logits of 16 to 32 come in steps of 0.125, and two steps may differ.
NEAR_TIE = 0.25

# Share of the answers with an unexplained divergence above which an arm is not recommended. Between
# 0 and this a mixture of experts may have routed otherwise in another batch; another body, or a
# sampler that is wrong, changes most answers.
NOT_LOSSLESS = 0.10

Tokens = Sequence[int] | Sequence[str]


class LosslessnessError(ValueError):
    """Two arms that cannot be compared; the message says why."""


@dataclass(frozen=True)
class Divergence:
    """The first place where an answer leaves the reference.

    `position` counts tokens (or, for texts, words and characters); `gap` is the reference's between
    its two best tokens there, None if it was not recorded; `expected` and `got` are the two tokens,
    None where that answer had ended.
    """

    prompt_id: str
    position: int
    expected: int | str | None
    got: int | str | None
    gap: float | None

    @property
    def near_tie(self) -> bool:
        return self.gap is not None and self.gap <= NEAR_TIE


@dataclass(frozen=True)
class LosslessReport:
    """An arm's answers against the reference's. `unit` is "tokens" or "words"."""

    compared: int
    equal: int
    unit: str
    divergences: tuple[Divergence, ...]

    @property
    def equal_share(self) -> float:
        return self.equal / self.compared

    @property
    def unexplained(self) -> int:
        """Divergences whose gap is known and too large for a near tie."""
        return sum(d.gap is not None and not d.near_tie for d in self.divergences)

    @property
    def changes_answers(self) -> bool:
        """Whether more answers differ without a near tie than `NOT_LOSSLESS` allows.

        Divergences whose gap is not known count as those do whose gap is.
        """
        known = sum(d.gap is not None for d in self.divergences)
        if not known:
            return False
        return self.unexplained / known * len(self.divergences) > NOT_LOSSLESS * self.compared

    def text(self) -> str:
        head = (
            f"{self.equal} of {self.compared} answers equal those without speculation, compared "
            f"by {self.unit}."
        )
        if not self.divergences:
            return head
        first = sorted(d.position for d in self.divergences)
        ties = sum(d.near_tie for d in self.divergences)
        unknown = sum(d.gap is None for d in self.divergences)
        parts = [
            head,
            f"First divergences at position {first[0]} to {first[-1]} (median "
            f"{first[len(first) // 2]}).",
        ]
        if ties:
            parts.append(
                f"{ties} at a near tie (gap up to {NEAR_TIE}), which batching can flip: these are "
                "no error of speculation."
            )
        if unknown:
            parts.append(f"{unknown} without a recorded gap: near ties or errors, not known.")
        if self.unexplained:
            worst = max(self.divergences, key=lambda d: d.gap or 0)
            parts.append(
                f"{self.unexplained} NOT explained by near ties (gap {worst.gap:.2f} at position "
                f"{worst.position} of {worst.prompt_id}): this arm is not lossless."
            )
        return " ".join(parts)

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "unexplained": self.unexplained,
            "changes_answers": self.changes_answers,
            "text": self.text(),
        }


def compare_arm(
    reference: Mapping[str, Tokens | str],
    arm: Mapping[str, Tokens | str],
    gaps: Mapping[str, Sequence[float]] | None = None,
) -> LosslessReport:
    """Compare an arm's answers at T = 0 with those of the arm without speculation.

    Args:
        reference: answer by prompt id, as token ids (better) or as text, which is cut into words.
        arm: the same for the arm, with the same prompts and in the same form.
        gaps: by prompt id, for each token of the reference the gap between its best and second-best
            token; only used with tokens.

    Raises:
        LosslessnessError: other prompts, none, or texts compared with tokens.
    """
    if set(reference) != set(arm):
        missing = sorted(set(reference) ^ set(arm))
        raise LosslessnessError(
            f"Both arms must hold the same prompts; {len(missing)} are in one only, e.g. "
            f"{missing[0]}."
        )
    if not reference:
        raise LosslessnessError("There are no answers to compare.")
    kinds = {isinstance(answer, str) for answer in (*reference.values(), *arm.values())}
    if len(kinds) > 1:
        raise LosslessnessError("Compare tokens with tokens or texts with texts, not one of each.")
    texts = kinds.pop()
    found = []
    for key, expected in reference.items():
        got = arm[key]
        if expected == got or list(expected) == list(got):
            continue
        position, a, b = _first_difference(expected, got)
        known = () if texts or gaps is None else gaps.get(key, ())
        gap = float(known[position]) if position < len(known) else None
        found.append(Divergence(key, position, a, b, gap))
    return LosslessReport(
        compared=len(reference),
        equal=len(reference) - len(found),
        unit="words" if texts else "tokens",
        divergences=tuple(found),
    )


def _first_difference(
    expected: Tokens | str, got: Tokens | str
) -> tuple[int, int | str | None, int | str | None]:
    a: Sequence[Any] = units(expected) if isinstance(expected, str) else expected
    b: Sequence[Any] = units(got) if isinstance(got, str) else got
    for position, (x, y) in enumerate(zip_longest(a, b)):
        if x != y:
            return position, x, y
    return len(a), None, None  # texts that differ in spaces only
