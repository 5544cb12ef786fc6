"""softcap_targets and verifier_norm_gain: the teacher's distribution is the served one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speculators_patches.patches import softcap_targets

VERSIONS = ["0.8.1", "0.9.0"]
# Verifier -> whether unpatched upstream gets it wrong.
WRONG = {"gemma2": True, "gemma4": True, "nested": True, "uncapped": True, "llama": False}


@pytest.mark.parametrize("version", VERSIONS)
def test_targets_are_what_the_verifier_serves(
    version: str, probe: Callable[[str, str], Any]
) -> None:
    """Largest total variation over 40 positions, float32, full and pruned vocabulary."""
    seen = probe("softcap", version)
    assert set(seen) == set(WRONG)
    for name, found in seen.items():
        for vocabulary in ("full", "pruned"):
            unpatched = found[f"unpatched_{vocabulary}"]
            assert (unpatched > 0.3) if WRONG[name] else (unpatched < 1e-5), name
            assert found[f"patched_{vocabulary}"] < 1e-5, name
    assert all(seen[name]["largest_logit"] <= 5 for name in ("gemma2", "gemma4", "nested"))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_drafter_kind_is_taught_capped_logits(
    version: str, probe: Callable[[str, str], Any]
) -> None:
    """DFlash loads the verifier's weights in a way of its own."""
    for kind, largest in probe("softcap_kinds", version).items():
        assert largest["unpatched"] > 4, kind
        assert largest["patched"] <= 2, kind


def head(cap: float | None) -> torch.nn.Linear:
    made = torch.nn.Linear(4, 6, bias=False)
    softcap_targets.set_cap(made, cap)
    return made


def test_a_cap_is_set_changed_and_taken_away() -> None:
    """Loading the verifier again, or another one, does not stack caps."""
    linear = head(2.0)
    states = torch.randn(5, 4) * 20
    raw = torch.nn.functional.linear(states, linear.weight)
    softcap_targets.set_cap(linear, 2.0)
    assert torch.equal(linear(states), (raw / 2.0).tanh() * 2.0)
    softcap_targets.set_cap(linear, 3.0)
    assert torch.equal(linear(states), (raw / 3.0).tanh() * 3.0)
    softcap_targets.set_cap(linear, None)
    assert torch.equal(linear(states), raw)
    assert list(linear.state_dict()) == ["weight"]


def test_bfloat16_rounds_as_the_server_does() -> None:
    """The cap is taken in the precision of the logits, as vLLM's LogitsProcessor takes it."""
    linear = head(30.0).to(torch.bfloat16)
    states = (torch.randn(64, 4) * 60).to(torch.bfloat16)
    logits = torch.nn.functional.linear(states, linear.weight)
    served = logits / 30.0
    served = torch.tanh(served)
    served = served * 30.0
    assert torch.equal(linear(states), served)
    assert linear(states).dtype == torch.bfloat16


def test_it_survives_compilation_and_pickling() -> None:
    linear = head(2.0)
    states = torch.randn(3, 4) * 10
    compiled = torch.compile(lambda x: linear(x), backend="eager", fullgraph=True)
    assert torch.equal(compiled(states), linear(states))
    again = pickle.loads(pickle.dumps(linear))
    assert torch.equal(again(states), linear(states))


@pytest.mark.parametrize("cap", [0, -1.0, True, "30"])
def test_a_cap_that_is_none_is_refused(cap: object) -> None:
    with pytest.raises(ValueError, match="must be a positive number or null"):
        softcap_targets.softcap_of(SimpleNamespace(final_logit_softcapping=cap))


def test_where_the_cap_is_read() -> None:
    inner = SimpleNamespace(final_logit_softcapping=30)
    assert softcap_targets.softcap_of(SimpleNamespace(text_config=inner)) == 30.0
    assert softcap_targets.softcap_of(inner) == 30.0
    assert softcap_targets.softcap_of(SimpleNamespace()) is None
    assert softcap_targets.softcap_of(SimpleNamespace(final_logit_softcapping=None)) is None
