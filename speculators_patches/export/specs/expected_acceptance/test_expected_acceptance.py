"""expect_k is the acceptance of drafts drawn from the drafter's distribution."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.models.eagle3.data import shift_batch
from speculators.models.eagle3.metrics import expected_acceptance

VOCABULARY, TOKENS, STEPS = 8, 12, 3


def probabilities(logits, temperature):
    return (logits.double() / temperature).softmax(-1)


def ratios(seen):
    return [
        float(seen[f"expect_{k}_sum"] / seen[f"expect_{k}_total"]) for k in range(STEPS)
    ]


def by_hand(drafted, targets, ids, mask, *, temperature, sayable=None):
    """(sum, count) for every position, one draft at a time."""
    counts = [[0.0, 0] for _ in drafted]
    for start in range(len(ids)):
        standing = 1.0
        for k, logits in enumerate(drafted):
            target = start + 1 + k
            if target >= len(ids) or not all(mask[start : target + 1]):
                break
            token = int(ids[target])
            if sayable is not None and token not in sayable:
                standing = 0.0
            else:
                at = token if sayable is None else sayable.index(token)
                q = probabilities(logits[0, start], temperature)[at]
                p = probabilities(targets[0, target - 1], temperature)[at]
                standing *= min(1.0, float(q / p))
            counts[k][0] += standing
            counts[k][1] += 1
    return counts


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("pruned", [False, True])
def test_counts_are_those_of_drafts_taken_one_by_one(temperature, pruned):
    torch.manual_seed(0)
    sayable = [0, 2, 3, 6] if pruned else None
    width = len(sayable) if pruned else VOCABULARY
    t2d = torch.tensor([i in sayable for i in range(VOCABULARY)]) if pruned else None
    drafted = [3 * torch.randn(1, TOKENS, width) for _ in range(STEPS)]
    targets = 3 * torch.randn(1, TOKENS, width)
    ids = torch.randint(0, VOCABULARY, (1, TOKENS))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]])

    seen = expected_acceptance(
        drafted, targets, ids, mask, t2d=t2d, temperature=temperature
    )

    expected = by_hand(
        drafted, targets, ids[0], mask[0], temperature=temperature, sayable=sayable
    )
    for k, (total, count) in enumerate(expected):
        assert float(seen[f"expect_{k}_sum"]) == pytest.approx(total, rel=1e-4)
        assert int(seen[f"expect_{k}_total"]) == count


def test_over_the_verifier_s_own_text_it_is_the_overlap_of_both():
    """The mean over all next tokens, weighted by p, is the sum of min(p, q)."""
    torch.manual_seed(0)
    drafted, targets = torch.randn(2, 1, 2, VOCABULARY).unbind(0)
    p, q = (probabilities(x[0, 0], 0.7) for x in (targets, drafted))
    mask = torch.ones(1, 2)

    mean = 0.0
    for token in range(VOCABULARY):
        ids = torch.tensor([[0, token]])
        seen = expected_acceptance(
            [drafted], targets, ids, mask, t2d=None, temperature=0.7
        )
        mean += float(p[token] * seen["expect_0_sum"])

    assert mean == pytest.approx(float(torch.minimum(p, q).sum()), rel=1e-5)


def test_a_drafter_that_is_the_verifier_is_always_accepted():
    targets = torch.randn(1, TOKENS, VOCABULARY)
    drafted = [targets.roll(-k, dims=1) for k in range(STEPS)]
    ids = torch.randint(0, VOCABULARY, (1, TOKENS))

    seen = expected_acceptance(
        drafted, targets, ids, torch.ones(1, TOKENS), t2d=None, temperature=0.7
    )

    assert ratios(seen) == pytest.approx([1.0] * STEPS)


@pytest.fixture
def model(tmp_path):
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    verifier = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **shape))
    verifier.save_pretrained(tmp_path)
    return Eagle3DraftModel.from_training_args(
        LlamaConfig(num_hidden_layers=1, **shape),
        draft_vocab_size=64,
        norm_before_residual=False,
        target_layer_ids=[0, 1, 2],
        verifier_name_or_path=str(tmp_path),
        ttt_steps=STEPS,
        draft_attn_impl="sdpa",
    )


def validate(model, **options):
    torch.manual_seed(1)
    batch = shift_batch(
        {
            "hidden_states": torch.randn(TOKENS, 3 * 32),
            "input_ids": torch.randint(0, 64, (TOKENS,)),
            "verifier_last_hidden_states": torch.randn(TOKENS, 32),
            "loss_mask": torch.arange(TOKENS) >= 3,
            "lengths": torch.tensor([TOKENS]),
            "position_ids": torch.arange(TOKENS),
        }
    )
    batch = {k: v[None] for k, v in batch.items() if k != "lengths"}
    with torch.no_grad():
        return model(
            **batch,
            document_ids=torch.zeros_like(batch["input_ids"]),
            ttt_steps=STEPS,
            loss_config=resolve_loss_config("kl_div", "eager"),
            **options,
        )


def test_validation_reports_it_if_asked(model):
    _, loss, without = validate(model)
    _, same, seen = validate(model, acceptance_temperature=0.7)

    added = {f"expect_{k}_{kind}" for k in range(STEPS) for kind in ("sum", "total")}
    assert set(seen) - set(without) == added
    assert torch.equal(loss, same)
    assert all(0 < value <= 1 for value in ratios(seen))


def test_only_validation_is_asked():
    arguments = {"loss_fn": "kl_div", "ttt_steps": 3, "ttt_step_loss_decay": 1.0}

    train, val = Eagle3DraftModel.get_trainer_kwargs(
        **arguments, acceptance_temperature=0.7
    )

    assert "acceptance_temperature" not in train
    assert val["acceptance_temperature"] == 0.7
