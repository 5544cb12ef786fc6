"""Losslessness: the first divergence, near ties told from errors, and arms that do not match."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.losslessness import LosslessnessError, compare_arm

TOKENS = st.lists(st.integers(0, 5), max_size=12)


@given(head=TOKENS, tail=TOKENS, other=TOKENS)
def test_the_first_divergence_is_where_the_common_beginning_ends(
    head: list[int], tail: list[int], other: list[int]
) -> None:
    a, b = head + tail, head + other
    report = compare_arm({"p": a}, {"p": b})
    common = 0
    while common < min(len(a), len(b)) and a[common] == b[common]:
        common += 1
    if a == b:
        assert report.equal == 1
    else:
        (found,) = report.divergences
        assert found.position == common >= len(head)
        assert found.expected == (a[common] if common < len(a) else None)
        assert found.got == (b[common] if common < len(b) else None)


def test_near_ties_are_told_from_errors() -> None:
    reference = {"tie": [1, 2, 3], "error": [1, 2, 3], "same": [4]}
    arm = {"tie": [1, 2, 4], "error": [1, 9, 3], "same": [4]}
    report = compare_arm(reference, arm, {"tie": [5.0, 5.0, 0.06], "error": [5.0, 3.5, 5.0]})
    assert report.equal_share == pytest.approx(1 / 3)
    assert report.unexplained == 1
    assert "1 at a near tie" in report.text()
    assert "gap 3.50 at position 1 of error" in report.text()
    assert "not lossless" in report.text()
    assert report.to_json()["unexplained"] == 1


def test_without_gaps_nothing_is_claimed() -> None:
    report = compare_arm({"p": [1, 2]}, {"p": [1, 3]})
    assert report.unexplained == 0
    assert "not known" in report.text()


def test_texts_are_compared_by_words_and_characters() -> None:
    report = compare_arm({"p": "Das ist gut. 很好"}, {"p": "Das ist gut. 很壞"})
    assert report.divergences[0].position == 5
    assert (report.divergences[0].expected, report.divergences[0].got) == ("好", "壞")
    assert "by words" in report.text()
    assert compare_arm({"p": "a  b"}, {"p": "a b"}).divergences[0].position == 2


def test_arms_that_do_not_match_are_refused() -> None:
    with pytest.raises(LosslessnessError, match=r"one only, e\.g\. b"):
        compare_arm({"a": [1]}, {"a": [1], "b": [2]})
    with pytest.raises(LosslessnessError, match="no answers"):
        compare_arm({}, {})
    with pytest.raises(LosslessnessError, match="not one of each"):
        compare_arm({"a": [1]}, {"a": "1"})
