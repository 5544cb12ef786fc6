"""The verdict over an arm: the 2 % rule, the signature of a loop, the likely cause in words."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.arm_verdict import (
    check_arm,
    conditional_acceptance,
    likely_causes,
    loop_signature,
)
from tests.unit.bench_text_samples import GOOD, PHRASES

# Conditional .84 .89 .99 .99, as published; here as vLLM reports it.
PUBLISHED = (0.84, 0.84 * 0.89, 0.84 * 0.89 * 0.99, 0.84 * 0.89 * 0.99 * 0.99)


@dataclass(frozen=True)
class Reply:
    prompt_id: str
    text: str
    finish_reason: str


def arm(good: int, bad: int, text: str = PHRASES["sentence"] * 20) -> list[Reply]:
    fine = [t for t in GOOD.values() if len(t) > 200]
    return [Reply(f"good-{k}", fine[k % len(fine)], "stop") for k in range(good)] + [
        Reply(f"bad-{k}", text, "length") for k in range(bad)
    ]


def test_two_percent_is_allowed_and_more_is_refused() -> None:
    assert check_arm(arm(98, 2)).status == "ok"
    assert check_arm(arm(97, 3)).status == "degenerate"
    assert check_arm(arm(49, 1)).status == "ok"
    assert check_arm(arm(48, 1)).refused


def test_a_refused_arm_says_why_with_examples_and_cause() -> None:
    verdict = check_arm(arm(30, 10), raw=True)
    words = verdict.text()
    assert "REFUSED: 10 of 40 answers (25.0%)" in words
    assert "bad-0" in words
    assert "I'm sorry" in words
    assert "no chat template" in words
    assert verdict.counts["endless"] == 10
    assert verdict.to_json()["refused"] is True


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (PHRASES["sentence"] * 20, "no chat template"),
        ("Fine.<end_of_turn>\nuser\nMore?\nmodel\nMore.", "wrong stop tokens"),
        ("abc \ufffd\ufffd\ufffd\ufffd def", "broken quantisation"),
        ("!" * 300, "broken quantisation"),
        ("", "ends at once"),
    ],
)
def test_the_likely_cause_is_named(text: str, cause: str) -> None:
    verdict = check_arm(arm(30, 10, text))
    assert any(cause in c for c in verdict.causes)


def test_an_unknown_pattern_is_not_guessed_at() -> None:
    assert likely_causes({}, 3, raw=False) == ("not recognised; read the examples",)


def test_the_published_acceptance_is_a_loop_and_honest_ones_are_not() -> None:
    assert loop_signature(PUBLISHED)
    honest = [
        (0.984, 0.973, 0.973, 0.970),  # fine-tuned, T = 0: starts near 1, so does not rise to it
        (0.940, 0.918, 0.881, 0.838),
        (0.796, 0.721, 0.685, 0.643),  # probabilistic drafting: rises, but not to 1
        (0.656, 0.433, 0.292, 0.205),
        (0.386, 0.048, 0.040, 0.027),
        (1.0, 0.997, 0.990, 0.990),
        (0.9, 0.9),  # two positions say nothing
        (0.5, 0.001, 0.001, 0.001),  # hardly a draft got there
        (),
    ]
    assert [a for a in honest if loop_signature(a)] == []


def test_the_signature_alone_is_a_suspicion_and_with_one_bad_text_a_refusal() -> None:
    suspect = check_arm(arm(100, 0), PUBLISHED)
    assert suspect.status == "suspect"
    assert not suspect.refused
    assert "0.84 0.89 0.99 0.99" in suspect.text()
    assert check_arm(arm(100, 1)).status == "ok"
    assert check_arm(arm(100, 1), PUBLISHED).refused


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_conditional_rates_multiply_back(rates: list[float]) -> None:
    falling = sorted(rates, reverse=True)
    product = 1.0
    for rate, conditional in zip(falling, conditional_acceptance(falling), strict=True):
        if conditional is None:
            assert rate == 0
            return
        product *= conditional
        assert product == pytest.approx(rate)


def test_acceptance_that_rises_is_not_vllms() -> None:
    with pytest.raises(ValueError, match="never rises"):
        check_arm(arm(5, 0), (0.84, 0.89, 0.99))


def test_no_answers_is_an_error_and_not_a_good_arm() -> None:
    with pytest.raises(ValueError, match="without answers"):
        check_arm([])
