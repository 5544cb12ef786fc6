"""A batch from a worker is empty once it is pinned; any other keeps what it has."""

from pathlib import Path

import pytest
import torch
from torch.utils.data._utils import pin_memory as pinning

from speculators.train.data import CollateFn

TOKENS, HIDDEN = 64, 32


def collated():
    sample = {
        "hidden_states": torch.randn(TOKENS, 3 * HIDDEN),
        "input_ids": torch.arange(TOKENS),
        "loss_mask": torch.ones(TOKENS),
        "lengths": torch.tensor([TOKENS]),
    }
    return CollateFn(TOKENS, HIDDEN)([sample])


def shared(tensor):
    """The tensor in a mapping of its own, as another process gets it."""
    descriptor, size = tensor.untyped_storage()._share_fd_cpu_()
    storage = torch.UntypedStorage._new_shared_fd_cpu(descriptor, size)
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, tensor.shape)


def sent(batch):
    """The batch as the trainer gets it from a worker."""
    return type(batch)(
        (name, shared(value) if isinstance(value, torch.Tensor) else value)
        for name, value in batch.items()
    )


def pin(batch):
    """What torch's pinning thread does, into ordinary memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        return pinning.pin_memory(batch)


def test_what_a_worker_sent_is_given_back():
    batch = collated()
    got = sent(batch)

    pinned = pin(got)

    assert got["hidden_states"].numel() == 0
    assert isinstance(pinned, dict)
    assert pinned.keys() == batch.keys()
    for name, value in batch.items():
        same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same(pinned[name], value)


def test_the_worker_s_own_tensor_stays():
    batch = collated()
    kept = batch["hidden_states"].clone()

    pin(sent(batch))

    assert torch.equal(batch["hidden_states"], kept)


def test_without_workers_nothing_is_given_back():
    batch = collated()

    pin(batch)

    assert batch["hidden_states"].shape == (1, TOKENS, 3 * HIDDEN)


def test_no_descriptor_stays_open():
    batch = sent(collated())
    before = len(list(Path("/proc/self/fd").iterdir()))

    pin(batch)

    assert len(list(Path("/proc/self/fd").iterdir())) < before
