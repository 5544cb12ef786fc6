"""What a draft vocabulary can say of a text, and the advice on its size."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.config import Recipe
from recipes.coverage import OWN, Coverage, cover, lines, most_frequent, share

COUNTS = st.dictionaries(st.integers(0, 40), st.integers(1, 9), max_size=20)


@settings(deadline=None)  # the first example imports upstream
@given(COUNTS, st.integers(1, 40))
def test_the_vocabulary_is_upstream_s(counts: dict[int, int], size: int) -> None:
    torch = pytest.importorskip("torch")
    vocab_mapping = pytest.importorskip("speculators.train.vocab_mapping")
    d2t, _ = vocab_mapping.build_vocab_mappings_from_distribution(counts, size, 64)
    assert most_frequent(counts, size) == set((d2t + torch.arange(size)).tolist())


@given(COUNTS, COUNTS)
def test_a_larger_vocabulary_never_covers_less(own: dict[int, int], other: dict[int, int]) -> None:
    parts = [share(other, most_frequent(own, n)) for n in (1, 5, 20, 41)]
    assert parts == sorted(parts)
    assert parts[-1] == pytest.approx(1.0)
    assert share(other, None) == 1.0


def test_each_text_has_its_own_share() -> None:
    own = {1: 90, 2: 9, 3: 1}
    found = cover({OWN: own, "zh": {3: 1, 9: 1}}, own, {1, 2}, vocabulary=50_000)
    assert [round(c.share, 3) for c in found] == [0.99, 0.0]
    assert list(found[0].by_size) == [8_192, 16_384, 32_000]


def test_advice_names_the_size_and_the_workloads() -> None:
    found = [
        Coverage(OWN, 100, 0.93, {8_192: 0.95, 16_384: 0.992}),
        Coverage("chinese", 50, 0.60, {}),
        Coverage("code", 50, 0.97, {}),
    ]
    fresh = dataclasses.replace(Recipe(), draft_start="", draft_vocab_size=4096)
    text = "\n".join(lines(found, fresh))
    assert "draft_vocab_size=16384" in text
    assert "chinese (40% of its tokens)" in text
    assert "code (" not in text.splitlines()[-1]
    assert "keeps its own vocabulary" in "\n".join(lines(found, Recipe()))
    assert len(lines([Coverage(OWN, 9, 1.0, {})], fresh)) == 1
