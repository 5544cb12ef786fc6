"""--from-pretrained trains in float32, whatever precision the checkpoint has."""

from argparse import Namespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.models.eagle3 import Eagle3DraftModel
from speculators.train.cli import build_draft_model

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.fixture
def verifier(tmp_path):
    path = tmp_path / "verifier"
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SHAPE)).save_pretrained(path)
    return str(path)


@pytest.fixture
def fresh(verifier):
    return Eagle3DraftModel.from_training_args(
        LlamaConfig(num_hidden_layers=1, **SHAPE),
        draft_vocab_size=64,
        norm_before_residual=False,
        target_layer_ids=[0, 1],
        verifier_name_or_path=verifier,
        ttt_steps=1,
        draft_attn_impl="sdpa",
    )


def load(path, verifier):
    args = Namespace(
        from_pretrained=str(path),
        speculator_type="eagle3",
        draft_attn_impl="sdpa",
        verifier_name_or_path=verifier,
    )
    return build_draft_model(args, Eagle3DraftModel, None, None, None)


@pytest.mark.parametrize("saved_in", [torch.bfloat16, torch.float32])
def test_every_weight_is_float32(fresh, verifier, tmp_path, saved_in):
    fresh.to(saved_in).save_pretrained(tmp_path / "start")

    model = load(tmp_path / "start", verifier)

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_values_are_those_of_the_checkpoint(fresh, verifier, tmp_path):
    fresh.to(torch.bfloat16).save_pretrained(tmp_path / "start")
    saved = {name: value.clone() for name, value in fresh.named_parameters()}

    model = load(tmp_path / "start", verifier)

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter, saved[name].float()), name


def test_small_updates_reach_the_weights(fresh, verifier, tmp_path):
    fresh.to(torch.bfloat16).save_pretrained(tmp_path / "start")
    norm = load(tmp_path / "start", verifier).norm.weight
    torch.nn.init.ones_(norm)
    optimizer = torch.optim.AdamW([norm], lr=1e-4, weight_decay=0.0)

    for _ in range(50):
        optimizer.zero_grad()
        norm.sum().backward()
        optimizer.step()

    assert float((1 - norm).max()) == pytest.approx(50 * 1e-4, rel=1e-3)
