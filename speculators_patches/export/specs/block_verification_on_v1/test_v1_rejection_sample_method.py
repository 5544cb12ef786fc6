# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Which rejection sampling methods a config accepts, by model runner."""

import pytest

from vllm.config import SpeculativeConfig, VllmConfig

REFUSED = "Model Runner V1 does not support: rejection_sample_method='block'"


def make_config(method, **kwargs):
    speculative_config = SpeculativeConfig(
        method="ngram",
        prompt_lookup_max=2,
        num_speculative_tokens=2,
        rejection_sample_method=method,
        **kwargs,
    )
    return VllmConfig(speculative_config=speculative_config)


@pytest.mark.parametrize("draft_sample_method", ["greedy", "probabilistic"])
def test_v1_refuses_block(monkeypatch, draft_sample_method):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")

    with pytest.raises(ValueError, match=REFUSED):
        make_config("block", draft_sample_method=draft_sample_method)


def test_a_fallback_to_v1_refuses_block(monkeypatch):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", False)

    with pytest.raises(ValueError, match=REFUSED):
        make_config("block")


@pytest.mark.parametrize(
    ("method", "kwargs"),
    [
        ("standard", {}),
        ("standard", {"draft_sample_method": "probabilistic"}),
        ("synthetic", {"synthetic_acceptance_length": 2.0}),
    ],
)
def test_v1_accepts_what_it_does(monkeypatch, method, kwargs):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")

    config = make_config(method, **kwargs)

    assert not config.use_v2_model_runner
    assert config.speculative_config.rejection_sample_method == method


def test_v2_accepts_block(monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)

    config = make_config("block")

    assert config.use_v2_model_runner
    assert config.speculative_config.rejection_sample_method == "block"
