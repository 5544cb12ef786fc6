"""full_acc and cond_acc at TTT step k count the drafts that lie in a reply."""

import pytest
import torch

from speculators.losses.eager import kl_div_loss
from speculators.models.eagle3 import metrics as eagle3_metrics

VOCABULARY = 16
LOSS = {"kl_div": (kl_div_loss, 1.0)}


def accuracies(targets, mask, drafts):
    """Per step the counts, for `drafts[k][i]`, drafted for i + k from a start at i."""
    correct = mask.clone()
    found = []
    for step, drafted in enumerate(drafts):
        logits = torch.nn.functional.one_hot(drafted, VOCABULARY).float() * 9
        _, seen = eagle3_metrics.compute_metrics(
            logits, targets, mask, correct, step, 1.0, loss_config=LOSS
        )
        found.append(
            {
                name: (
                    int(seen[f"{name}_{step}_sum"]),
                    int(seen[f"{name}_{step}_total"]),
                )
                for name in ("full_acc", "cond_acc")
            }
        )
    return found


def counted(ids, mask, drafts):
    """The same, one draft at a time."""
    length = len(mask)
    found = []
    alive = [True] * length
    for step, drafted in enumerate(drafts):
        starts = [i for i in range(length - step) if all(mask[i : i + step + 1])]
        before = sum(alive[i] for i in starts)
        for i in range(length - step):
            alive[i] = alive[i] and int(drafted[0, i]) == int(ids[i + step])
        right = sum(alive[i] for i in starts)
        found.append({"full_acc": (right, len(starts)), "cond_acc": (right, before)})
    return found


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
@pytest.mark.parametrize("reply", [1, 2, 3, 20])
def test_a_perfect_drafter_reads_one(reply, dtype):
    mask = torch.zeros(1, 60, dtype=dtype)
    mask[:, 5 : 5 + reply] = mask[:, 35 : 35 + reply] = 1
    ids = torch.randint(0, VOCABULARY, (1, 60))
    targets = torch.nn.functional.one_hot(ids, VOCABULARY).float()
    drafts = [ids.roll(-step, dims=1) for step in range(3)]

    for step, seen in enumerate(accuracies(targets, mask, drafts)):
        expected = 2 * max(0, reply - step)
        assert seen == {"full_acc": (expected, expected), "cond_acc": (expected,) * 2}


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_those_of_drafts_taken_one_by_one(seed):
    torch.manual_seed(seed)
    mask = torch.rand(1, 30) < 0.7
    ids = torch.randint(0, VOCABULARY, (1, 30))
    targets = torch.nn.functional.one_hot(ids, VOCABULARY).float()
    drafts = []
    for step in range(4):
        wrong = torch.rand(1, 30) < 0.3
        shift = torch.where(wrong, 1, 0)
        drafts.append((ids.roll(-step, dims=1) + shift) % VOCABULARY)

    seen = accuracies(targets, mask, drafts)

    assert seen == counted(ids[0], mask[0].tolist(), drafts)
