"""Expected counts over the body's own texts equal those of speculative decoding, exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.predict import walk

VOCABULARY = 3


def decoding(accept: np.ndarray) -> walk.Counts:
    """Counts of decoding itself, where the acceptance of a draft does not depend on the context."""
    return walk.count(accept)


def random_distributions(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.dirichlet(np.full(VOCABULARY, 0.6), size=shape)
    return np.asarray(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3))
def test_texts_drawn_from_the_body_give_the_counts_of_decoding(
    seed: int, starts: int, n: int
) -> None:
    """Every text of the needed length, weighted with its probability; both ways of drafting.

    The drafts' distributions differ by start and depth, as a drafter's do, but not by context: then
    acceptance in decoding is known in closed form.
    """
    length = starts + n  # tokens that windows reach, after the first
    p = random_distributions(seed, length)
    q = random_distributions(seed + 1, starts, n)
    overlap = np.array(
        [[np.minimum(p[s + k], q[s, k]).sum() for k in range(n)] for s in range(starts)]
    )
    best = q.argmax(-1)
    greedy = np.array([[p[s + k, best[s, k]] for k in range(n)] for s in range(starts)])
    totals = {way: np.zeros(n + 1) for way in ("probabilistic", "greedy", "block")}
    for text in itertools.product(range(VOCABULARY), repeat=length):
        weight = np.prod([p[j, t] for j, t in enumerate(text)])
        ratio = np.array(
            [[np.log(q[s, k, text[s + k]] / p[s + k, text[s + k]]) for k in range(n)]
             for s in range(starts)]
        )  # fmt: skip
        hit = np.array(
            [[float(best[s, k] == text[s + k]) for k in range(n)] for s in range(starts)]
        )
        for way, accepts in (("probabilistic", walk.standing(ratio)), ("greedy", hit)):
            counts = walk.count(accepts)
            totals[way] += weight * np.array([counts.drafts, *counts.accepted])
        counts = walk.count_reaching(walk.block_standing(ratio))
        totals["block"] += weight * np.array([counts.drafts, *counts.accepted])
    for way, accepts in (("probabilistic", overlap), ("greedy", greedy)):
        exact = decoding(accepts)
        np.testing.assert_allclose(totals[way], [exact.drafts, *exact.accepted], rtol=1e-9)
    exact = walk.count_reaching(np.array([blocks(p[s : s + n], q[s]) for s in range(starts)]))
    np.testing.assert_allclose(totals["block"], [exact.drafts, *exact.accepted], rtol=1e-9)


def blocks(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """P(first i stand) by definition: E over drafts of p_i, p_i = min(1, p_(i-1) p(x)/q(x))."""
    found = np.zeros(len(p))
    for tokens in itertools.product(range(VOCABULARY), repeat=len(p)):
        standing = np.ones(1)
        for k, t in enumerate(tokens):
            standing = np.append(standing, min(1.0, standing[-1] * p[k, t] / q[k, t]))
        found += np.prod([q[k, t] for k, t in enumerate(tokens)]) * standing[1:]
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_block_verification_is_what_its_definition_gives(seed: int, n: int) -> None:
    """From the body's texts and from the drafts: the same; one start."""
    p, q = random_distributions(seed, n), random_distributions(seed + 1, n)
    from_texts = np.zeros(n)
    for tokens in itertools.product(range(VOCABULARY), repeat=n):
        ratio = np.array([q[k, t] / p[k, t] for k, t in enumerate(tokens)])
        from_texts += (
            np.prod([p[k, t] for k, t in enumerate(tokens)])
            * walk.block_standing(np.log(ratio)[None])[0]
        )
    np.testing.assert_allclose(from_texts, blocks(p, q), rtol=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 4))
def test_counts_are_counts(seed: int, starts: int, n: int) -> None:
    """Every token after the first is emitted once; acceptance never rises; block never loses."""
    rng = np.random.default_rng(seed)
    accepts = rng.random((starts, n))
    found = walk.count(accepts)
    assert list(found.accepted) == sorted(found.accepted, reverse=True)
    assert 1 <= found.drafts <= starts
    assert starts <= found.drafts + sum(found.accepted) <= starts + n
    ratios = rng.normal(size=(starts, n))
    assert (walk.block_standing(ratios) >= np.cumprod(walk.standing(ratios), axis=1) - 1e-12).all()


def test_the_ends() -> None:
    assert walk.count(np.ones((10, 4))).drafts == 2.0
    assert walk.count(np.zeros((10, 4))) == walk.Counts(10.0, (0.0,) * 4)
    assert walk.count(np.ones((3, 1))).length == pytest.approx(2.0)
