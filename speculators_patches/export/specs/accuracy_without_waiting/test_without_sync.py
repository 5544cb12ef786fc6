"""Accuracy counts stay what they are, and stay inside a compiled graph."""

import pytest
import torch

from speculators.models.metrics import compute_accuracy_single_step


def counted(predicted, target, mask, before):
    """The same, token by token."""
    length = predicted.shape[1]
    judged = [mask is None or bool(mask[0, i]) for i in range(length)]
    standing = [before is None or bool(before[0, i]) for i in range(length)]
    right = [
        standing[i] and int(predicted[0, i]) == int(target[0, i]) for i in range(length)
    ]
    correct = sum(r and j for r, j in zip(right, judged, strict=True))
    return [correct, sum(judged), correct, sum(standing)], right


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_counts_are_those_of_tokens_taken_one_by_one(seed, chained, masked):
    torch.manual_seed(seed)
    length = 1 + seed
    predicted, target = torch.randint(0, 3, (2, 1, length))
    mask = torch.rand(1, length) < 0.6 if masked else None
    before = torch.rand(1, length) < 0.6 if chained else None
    if chained and masked:
        before = before & mask
    expected, right = counted(predicted, target, mask, before)

    found = compute_accuracy_single_step(predicted, target, mask, before)

    assert [float(value) for value in found] == expected
    assert {value.dtype for value in found} == {torch.float32}
    assert len({value.data_ptr() for value in found}) == 4
    if before is not None:
        assert before[0].tolist() == right


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_a_mask_may_have_any_dtype(dtype):
    ids = torch.arange(8)[None]
    mask = (ids > 3).to(dtype)

    found = compute_accuracy_single_step(ids, ids, mask, mask.clone())

    assert [int(value) for value in found] == [4, 4, 4, 4]


def test_it_does_not_cut_a_compiled_graph():
    graphs = []

    def keep(module, inputs):
        graphs.append(module)
        return module.forward

    ids = torch.arange(8)[None]
    torch._dynamo.reset()
    compiled = torch.compile(compute_accuracy_single_step, backend=keep)

    found = compiled(ids, ids, ids > 3, ids > 3)

    assert [int(value) for value in found] == [4, 4, 4, 4]
    assert len(graphs) == 1
