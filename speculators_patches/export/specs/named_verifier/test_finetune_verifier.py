"""--from-pretrained takes its targets from the verifier that is named and served."""

import logging
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


def make_verifier(path, seed, **changes):
    torch.manual_seed(seed)
    config = LlamaConfig(num_hidden_layers=2, **SHAPE | changes)
    verifier = LlamaForCausalLM(config)
    torch.nn.init.normal_(verifier.model.norm.weight, mean=1.0)
    verifier.save_pretrained(path)
    return verifier


def make_drafter(verifier, path, pruned=False):
    t2d = torch.arange(64) % 2 == 0
    d2t = torch.arange(32)
    Eagle3DraftModel.from_training_args(
        LlamaConfig(num_hidden_layers=1, **SHAPE),
        t2d=t2d if pruned else None,
        d2t=d2t if pruned else None,
        draft_vocab_size=32 if pruned else 64,
        norm_before_residual=False,
        target_layer_ids=[0, 1],
        verifier_name_or_path=str(verifier),
        ttt_steps=1,
        draft_attn_impl="sdpa",
    ).save_pretrained(path)
    return t2d if pruned else slice(None)


def finetune(drafter, verifier):
    args = Namespace(
        from_pretrained=str(drafter),
        speculator_type="eagle3",
        draft_attn_impl="sdpa",
        verifier_name_or_path=str(verifier),
    )
    return build_draft_model(args, Eagle3DraftModel, None, None, None)


@pytest.fixture
def first(tmp_path):
    return make_verifier(tmp_path / "first", seed=0)


@pytest.fixture
def second(tmp_path):
    return make_verifier(tmp_path / "second", seed=1)


@pytest.mark.parametrize("pruned", [False, True])
def test_targets_are_those_of_the_named_verifier(tmp_path, first, second, pruned):
    rows = make_drafter(tmp_path / "first", tmp_path / "drafter", pruned)

    model = finetune(tmp_path / "drafter", tmp_path / "second")

    assert torch.equal(model.verifier_lm_head.weight, second.lm_head.weight[rows])
    assert torch.equal(model.verifier_norm.weight, second.model.norm.weight)


def test_the_checkpoint_s_own_weights_stay(tmp_path, first, second):
    make_drafter(tmp_path / "first", tmp_path / "drafter")
    before = finetune(tmp_path / "drafter", tmp_path / "first").state_dict()

    after = finetune(tmp_path / "drafter", tmp_path / "second").state_dict()

    for name, value in before.items():
        if not name.startswith("verifier_"):
            assert torch.equal(after[name], value), name


def test_what_is_saved_names_it(tmp_path, first, second):
    make_drafter(tmp_path / "first", tmp_path / "drafter")
    finetune(tmp_path / "drafter", tmp_path / "second").save_pretrained(tmp_path / "on")

    saved = Eagle3DraftModel.config_class.from_pretrained(tmp_path / "on")

    assert saved.speculators_config.verifier.name_or_path == str(tmp_path / "second")


def test_the_first_verifier_s_files_are_not_needed(tmp_path, first, second):
    make_drafter(tmp_path / "first", tmp_path / "drafter")
    (tmp_path / "first").rename(tmp_path / "gone")

    finetune(tmp_path / "drafter", tmp_path / "second")


def test_another_verifier_is_told_and_the_same_is_not(tmp_path, first, second, caplog):
    make_drafter(tmp_path / "first", tmp_path / "drafter")
    with caplog.at_level(logging.WARNING, logger="speculators.train.cli"):
        finetune(tmp_path / "drafter", tmp_path / "first")
        assert "--verifier-name-or-path" not in caplog.text

        finetune(tmp_path / "drafter", tmp_path / "second")

    assert f"trained for the verifier '{tmp_path / 'first'}'" in caplog.text


def test_one_of_another_width_is_refused(tmp_path, first):
    make_verifier(tmp_path / "wide", seed=1, hidden_size=64)
    make_drafter(tmp_path / "first", tmp_path / "drafter")

    with pytest.raises((RuntimeError, ValueError), match="size"):
        finetune(tmp_path / "drafter", tmp_path / "wide")
