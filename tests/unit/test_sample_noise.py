"""Noise that each sample gets whoever draws it: this process, or any of several spawned workers."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from speculators_patches.step_checkpoints import noise


class Uniform:
    """As upstream 0.8's `AddUniformNoise`: draws from torch's global generator."""

    std = 0.05

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        states = sample["hidden_states"]
        return sample | {"hidden_states": states + 2 * (torch.rand_like(states) - 0.5) * self.std}


class Rows(Dataset[Any]):
    def __init__(self) -> None:
        self.transform: Any = Uniform()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return self.transform(
            {"input_ids": torch.tensor([index, 7]), "hidden_states": torch.zeros(2, 3)}
        )["hidden_states"]


def drawn(workers: int, epochs: list[int], seed: int = 3) -> list[list[Any]]:
    """Of each epoch, what its samples got."""
    loader: DataLoader[Any] = DataLoader(
        Rows(),
        batch_size=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="spawn" if workers else None,
    )
    torch.manual_seed(seed)
    made, fields = noise.install(loader)
    assert made is not None
    assert [field.name for field in fields] == ["data.noise", "data.noise_seed"]
    found = []
    for epoch in epochs:
        made.begin(epoch)
        found.append([batch.tolist() for batch in loader])
    return found


def test_workers_stops_and_order_change_nothing() -> None:
    both = drawn(0, [0, 1])
    assert drawn(2, [0, 1]) == both  # persistent workers hear of the new epoch
    assert drawn(0, [1]) == both[1:]  # a process that begins there
    flat = [str(sample) for epoch in both for sample in epoch]
    assert len(set(flat)) == len(flat)  # no two alike
    assert drawn(0, [0], seed=4) != both[:1]


def test_the_generator_in_use_is_left_alone() -> None:
    torch.manual_seed(0)
    made = noise.SampleNoise(Uniform(), 0)
    before = torch.get_rng_state()
    made({"input_ids": torch.tensor([1]), "hidden_states": torch.zeros(1, 1)})
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_set_without_noise_stays_as_it_is() -> None:
    rows = Rows()
    rows.transform = None
    loader: DataLoader[Any] = DataLoader(rows, batch_size=None)
    assert noise.install(loader) == (None, [])
    assert rows.transform is None
