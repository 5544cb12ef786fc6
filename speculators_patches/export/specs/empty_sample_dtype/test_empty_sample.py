"""A batch without samples has the dtypes and the width of one with samples."""

import pytest
import torch

from speculators.train.data import create_collate_fn, create_empty_sample

HIDDEN = 8


def real_sample(dtype, layers, tokens=5):
    return {
        "hidden_states": torch.randn(tokens, layers * HIDDEN).to(dtype),
        "input_ids": torch.arange(tokens),
        "verifier_last_hidden_states": torch.randn(tokens, HIDDEN).to(dtype),
        "loss_mask": torch.ones(tokens, dtype=torch.bool),
        "lengths": torch.tensor([tokens]),
        "position_ids": torch.arange(tokens),
    }


@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_looks_like_a_real_batch(dtype, layers):
    collate = create_collate_fn(16, HIDDEN, num_target_layers=layers, dtype=dtype)

    empty, real = collate([None, None]), collate([real_sample(dtype, layers)])

    assert empty.keys() == real.keys()
    for key in real.keys() - {"lengths"}:
        assert empty[key].dtype == real[key].dtype, key
        assert empty[key].shape == real[key].shape, key
    assert not empty["loss_mask"].any()


def test_defaults_are_those_of_the_command_line():
    empty = create_empty_sample(HIDDEN)

    assert empty["hidden_states"].dtype == torch.bfloat16
    assert empty["hidden_states"].shape == (0, 3 * HIDDEN)
    assert empty["verifier_last_hidden_states"].dtype == torch.bfloat16


def test_bfloat16_weights_take_it():
    batch = create_collate_fn(16, HIDDEN)([None])
    fc = torch.nn.Linear(3 * HIDDEN, HIDDEN, dtype=torch.bfloat16)

    assert fc(batch["hidden_states"]).shape == (1, 16, HIDDEN)
