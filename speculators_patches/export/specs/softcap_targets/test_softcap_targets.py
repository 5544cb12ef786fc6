"""Targets are made from the logits that the verifier serves."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
)

from speculators.models.dflash import DFlashDraftModel
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.models.peagle import PEagleDraftModel

HIDDEN = 32
SHAPE = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
KINDS = {
    "eagle3": (Eagle3DraftModel, LlamaConfig),
    "peagle": (PEagleDraftModel, LlamaConfig),
    "dflash": (DFlashDraftModel, Qwen3Config),
}


def make_drafter(folder, cap=None, architecture="gemma2", kind="eagle3"):
    torch.manual_seed(0)
    if architecture == "gemma2":
        config = Gemma2Config(
            num_hidden_layers=2, head_dim=16, final_logit_softcapping=cap, **SHAPE
        )
        verifier = Gemma2ForCausalLM(config)
    else:
        verifier = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SHAPE))
    verifier.save_pretrained(folder / "verifier")
    model, config = KINDS[kind]
    return model.from_training_args(
        config(num_hidden_layers=1, head_dim=16, **SHAPE),
        draft_vocab_size=64,
        norm_before_residual=False,
        target_layer_ids=[0, 1],
        verifier_name_or_path=str(folder / "verifier"),
        ttt_steps=1,
        num_depths=1,
        mask_token_id=0,
        draft_attn_impl="sdpa",
    )


def raw(head, states):
    return torch.nn.functional.linear(states, head.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_capped_verifier_gives_capped_targets(tmp_path, kind):
    head = make_drafter(tmp_path, cap=2.0, kind=kind).verifier_lm_head
    states = torch.randn(8, HIDDEN) * 50

    expected = (raw(head, states) / 2.0).tanh() * 2.0
    assert torch.equal(head(states), expected)


@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
def test_without_a_cap_nothing_changes(tmp_path, architecture):
    head = make_drafter(tmp_path, architecture=architecture).verifier_lm_head
    states = torch.randn(8, HIDDEN) * 50

    assert torch.equal(head(states), raw(head, states))


def test_loading_again_does_not_cap_twice(tmp_path):
    model = make_drafter(tmp_path, cap=2.0)
    states = torch.randn(8, HIDDEN) * 50
    before = model.verifier_lm_head(states)

    model.load_verifier_weights()

    assert torch.equal(model.verifier_lm_head(states), before)


def test_the_drafter_s_own_head_is_not_capped(tmp_path):
    model = make_drafter(tmp_path, cap=2.0)
    states = torch.randn(8, HIDDEN) * 500

    assert torch.equal(model.lm_head(states), raw(model.lm_head, states))


def test_state_dict_keys_are_unchanged(tmp_path):
    capped = make_drafter(tmp_path / "a", cap=2.0)
    uncapped = make_drafter(tmp_path / "b")

    assert list(capped.state_dict()) == list(uncapped.state_dict())
