"""The reconstructed targets go through the verifier's own final norm."""

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

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
GEMMA = {"num_hidden_layers": 2, "head_dim": 16, **SHAPE}
# Uncapped, so that nothing but the norm is compared.
VERIFIERS = {
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(final_logit_softcapping=None, **GEMMA)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SHAPE)),
}


def make_verifier(folder, family):
    torch.manual_seed(0)
    verifier = VERIFIERS[family]().eval()
    # As trained ones are: neither 0 nor 1 everywhere.
    torch.nn.init.normal_(verifier.model.norm.weight, mean=0.5)
    verifier.save_pretrained(folder)
    return verifier


def make_drafter(folder, drafter=Eagle3DraftModel):
    return drafter.from_training_args(
        LlamaConfig(num_hidden_layers=1, **SHAPE),
        draft_vocab_size=64,
        norm_before_residual=False,
        target_layer_ids=[0, 1],
        verifier_name_or_path=str(folder),
        ttt_steps=1,
        num_depths=1,
        mask_token_id=0,
        draft_attn_impl="sdpa",
    )


def targets(model, states):
    return model.verifier_lm_head(model.verifier_norm(states))


@pytest.mark.parametrize("drafter", [Eagle3DraftModel, PEagleDraftModel])
@pytest.mark.parametrize("family", VERIFIERS)
def test_targets_are_the_verifier_s_logits(tmp_path, family, drafter):
    verifier = make_verifier(tmp_path, family)
    model = make_drafter(tmp_path, drafter)
    states = torch.randn(1, 8, HIDDEN)

    expected = verifier.lm_head(verifier.model.norm(states))

    torch.testing.assert_close(targets(model, states), expected)


@pytest.mark.parametrize("family", ["gemma2", "llama"])
def test_a_reloaded_drafter_has_the_same_targets(tmp_path, family):
    verifier = make_verifier(tmp_path / "verifier", family)
    make_drafter(tmp_path / "verifier").save_pretrained(tmp_path / "drafter")
    states = torch.randn(1, 8, HIDDEN)

    model = Eagle3DraftModel.from_pretrained(tmp_path / "drafter")

    expected = verifier.lm_head(verifier.model.norm(states))
    torch.testing.assert_close(targets(model, states), expected)


def test_the_drafter_s_own_norm_is_that_of_its_layers(tmp_path):
    make_verifier(tmp_path, "gemma2")
    model = make_drafter(tmp_path)

    assert type(model.norm) is type(model.layers[0].post_attention_layernorm)


def test_state_dict_keys_do_not_depend_on_the_verifier(tmp_path):
    keys = []
    for family in ("gemma2", "llama"):
        make_verifier(tmp_path / family, family)
        keys.append(list(make_drafter(tmp_path / family).state_dict()))

    assert keys[0] == keys[1]
