"""p, q and the measures between them, against their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.predict.distributions import (
    Sampling,
    SamplingError,
    compare,
    defaults_of,
    drafted,
    served,
    soft_cap,
)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.2, 2.0), st.integers(0, 9), st.floats(0.05, 1.0))
def test_top_k_and_top_p_keep_the_best_and_renormalise(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed)) * 3
    p = served(logits, Sampling(temperature, top_k, top_p))
    whole = (logits / temperature).softmax(-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(4))
    for row, full in zip(p, whole, strict=True):
        kept = row > 0
        assert kept[full.argmax()]
        if top_k:
            assert kept.sum() <= top_k
        # What is kept is likelier than what is not, and proportional to what it was.
        if (~kept).any():
            assert full[kept].min() >= full[~kept].max()
        torch.testing.assert_close(row[kept], full[kept] / full[kept].sum())
        if not top_k:
            without = full[kept].sum() - full[kept].min()
            assert without < top_p + 1e-5, "no token more than top_p needs"


def test_temperature_0_is_the_best_token() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert served(logits, Sampling(0.0, 2, 0.5)).tolist() == [[0.0, 1.0, 0.0]]
    assert drafted(logits, 0.0).tolist() == [[0.0, 1.0, 0.0]]


def test_measures_over_a_pruned_vocabulary() -> None:
    """The drafter can say the ids 0 and 2 only; a fifth of p lies elsewhere."""
    p = torch.tensor([[0.5, 0.2, 0.3]])
    q = torch.tensor([[0.6, 0.4]])
    sayable = torch.tensor([0, 2])
    found = compare(p, q, torch.tensor([2]), sayable)
    assert found.overlap.item() == pytest.approx(0.8)
    assert found.greedy.item() == pytest.approx(0.5)
    assert found.unsayable.item() == pytest.approx(0.2)
    assert found.kl.item() == float("inf")
    assert found.log_ratio.exp().item() == pytest.approx(0.4 / 0.3)
    assert found.hit.item() == 0.0
    assert (found.best.item(), found.best_hit.item()) == (0.5, 0.0)
    never = compare(p, q, torch.tensor([1]), sayable)
    assert never.log_ratio.item() == -float("inf")


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_overlap_is_one_minus_total_variation_and_at_least_greedy_times_q(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(6, 10, generator=random).softmax(-1) for _ in range(2))
    found = compare(p, q, torch.zeros(6, dtype=torch.long), None)
    torch.testing.assert_close(found.overlap, 1 - (p - q).abs().sum(-1) / 2)
    assert (found.kl >= -1e-6).all()
    assert (found.best >= found.greedy).all()


def test_what_vllm_takes_from_the_body(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    assert defaults_of(str(tmp_path)) == {"top_k": 0, "top_p": 1.0}
    file.write_text(json.dumps({"top_k": 64, "top_p": 0.95, "temperature": 1.0}))
    assert defaults_of(str(tmp_path)) == {"top_k": 64, "top_p": 0.95}
    file.write_text(json.dumps({"min_p": 0.1}))
    with pytest.raises(SamplingError, match=r"min_p=0\.1"):
        defaults_of(str(tmp_path))


def test_no_cap_is_no_change() -> None:
    logits = torch.randn(3, 4)
    assert soft_cap(logits, None) is logits
    assert torch.equal(soft_cap(logits, 30.0), torch.tanh(logits / 30.0) * 30.0)
