"""--mask-unsayable-positions takes what can't be drafted out of the loss."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel

TOKENS = 12
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def make_drafter(folder, pruned=True):
    """The draft vocabulary, where it is pruned, is the even tokens."""
    torch.manual_seed(0)
    verifier = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHAPE))
    verifier.save_pretrained(folder)
    vocabulary = {"draft_vocab_size": 64}
    if pruned:
        vocabulary = {
            "t2d": torch.arange(64) % 2 == 0,
            "d2t": torch.arange(32),
            "draft_vocab_size": 32,
        }
    return Eagle3DraftModel.from_training_args(
        LlamaConfig(num_hidden_layers=1, **SHAPE),
        norm_before_residual=False,
        target_layer_ids=[0, 1, 2],
        verifier_name_or_path=str(folder),
        ttt_steps=1,
        draft_attn_impl="sdpa",
        **vocabulary,
    )


def step(model, ids, mask=None, dtype=torch.bool, **options):
    """Loss, gradient and metrics of one step over `ids`."""
    torch.manual_seed(1)
    mask = torch.ones(1, TOKENS) if mask is None else mask
    model.zero_grad()
    _, loss, metrics = model(
        hidden_states=torch.randn(1, TOKENS, 3 * 32),
        input_ids=ids,
        document_ids=torch.zeros(1, TOKENS, dtype=torch.long),
        loss_mask=mask.to(dtype),
        verifier_last_hidden_states=torch.randn(1, TOKENS, 32),
        ttt_steps=1,
        loss_config=resolve_loss_config("kl_div", "eager"),
        **options,
    )
    loss.backward()
    return loss, model.fc.weight.grad.clone(), metrics


def text_of(parity):
    """Tokens that are even, odd, or both."""
    tokens = torch.randint(0, 32, (1, TOKENS), generator=torch.manual_seed(2))
    if parity == "mixed":
        return 2 * tokens + torch.arange(TOKENS) % 2
    return 2 * tokens + (parity == "odd")


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_a_text_that_can_t_be_said_teaches_nothing(tmp_path, dtype):
    mask = torch.ones(1, TOKENS)
    mask[0, -1] = 0  # what comes after the batch is not known

    loss, gradient, metrics = step(
        make_drafter(tmp_path),
        text_of("odd"),
        mask,
        dtype,
        mask_unsayable_positions=True,
    )

    assert float(loss) == 0
    assert float(gradient.abs().max()) == 0
    assert int(metrics["full_acc_0_total"]) == 0


def test_the_rest_counts_as_if_the_mask_had_been_like_that(tmp_path):
    model = make_drafter(tmp_path)
    ids = text_of("mixed")
    mask = torch.cat([ids[:, 1:] % 2 == 0, torch.ones(1, 1, dtype=torch.bool)], dim=1)
    assert 0 < int(mask.sum()) < TOKENS

    expected = step(model, ids, mask)
    found = step(model, ids, mask_unsayable_positions=True)

    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    ("pruned", "parity", "asked"),
    [(True, "even", True), (False, "odd", True), (True, "odd", False)],
)
def test_nothing_changes_otherwise(tmp_path, pruned, parity, asked):
    model = make_drafter(tmp_path, pruned)
    ids = text_of(parity)

    expected = step(model, ids)
    found = step(model, ids, mask_unsayable_positions=asked)

    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("asked", [False, True])
def test_training_and_validation_get_the_setting(asked):
    arguments = {"loss_fn": "kl_div", "ttt_steps": 3, "ttt_step_loss_decay": 1.0}

    for kwargs in Eagle3DraftModel.get_trainer_kwargs(
        **arguments, mask_unsayable_positions=asked
    ):
        assert kwargs["mask_unsayable_positions"] is asked
