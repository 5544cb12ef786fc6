"""A cached file that can't be used is one unavailable sample."""

import pytest
import torch
from datasets import Dataset
from safetensors.torch import save_file

from speculators.train.data import ArrowDataset
from speculators.train.recovery import SampleUnavailable

TOKENS = torch.tensor([1, 2, 3, 4])


def payload(**changes):
    states = torch.randn(4, 4, 8).to(torch.bfloat16)
    tensors = {"hidden_states": states, "token_ids": TOKENS.clone()} | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.fixture
def cache(tmp_path):
    rows = [{"input_ids": TOKENS.tolist(), "loss_mask": [0, 1, 1, 1], "seq_len": 4}]
    dataset = Dataset.from_list(rows * 5).with_format("torch")
    dataset.save_to_disk(str(tmp_path))
    folder = tmp_path / "hidden_states"
    folder.mkdir()
    for index in range(5):
        save_file(payload(), folder / f"hs_{index}.safetensors")
    return folder


def open_dataset(cache, **options):
    return ArrowDataset(8, cache.parent, on_missing="raise", **options)


def with_nan():
    states = torch.randn(4, 4, 8)
    states[2, 1, 3] = torch.nan
    return states.to(torch.bfloat16)


BROKEN = {
    "no hidden states": {"hidden_states": None},
    "too few rows": {"hidden_states": torch.zeros(3, 4, 8, dtype=torch.bfloat16)},
    "other tokens": {"token_ids": TOKENS.roll(1)},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_payload_that_does_not_fit_is_unavailable(cache, name):
    save_file(payload(**BROKEN[name]), cache / "hs_1.safetensors")

    sample = open_dataset(cache)[1]

    assert isinstance(sample, SampleUnavailable)
    assert sample.counts_as_failure


@pytest.mark.parametrize("content", [b"", b"\xff" * 400])
def test_a_file_that_cannot_be_read_is_unavailable(cache, content):
    (cache / "hs_1.safetensors").write_bytes(content)

    sample = open_dataset(cache)[1]

    assert isinstance(sample, SampleUnavailable)
    assert "1" in sample.reason


def test_a_truncated_file_is_unavailable_and_its_neighbours_are_not(cache):
    file = cache / "hs_1.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    dataset = open_dataset(cache)

    kinds = [isinstance(dataset[index], SampleUnavailable) for index in range(3)]

    assert kinds == [False, True, False]


def test_consecutive_failures_trip_the_circuit_breaker(cache):
    for index in range(3):
        (cache / f"hs_{index}.safetensors").write_bytes(b"")
    dataset = open_dataset(cache, max_consecutive_generation_failures=3)

    samples = [dataset[index] for index in range(3)]

    assert [sample.fatal for sample in samples] == [False, False, True]


def test_a_sound_sample_resets_the_count(cache):
    for index in (0, 2):
        (cache / f"hs_{index}.safetensors").write_bytes(b"")
    dataset = open_dataset(cache, max_consecutive_generation_failures=2)

    dataset[0], dataset[1]
    last = dataset[2]

    assert not last.fatal


def test_a_missing_file_is_still_the_caller_s_choice(cache):
    (cache / "hs_1.safetensors").unlink()

    with pytest.raises(RuntimeError, match="Failed to load hidden states"):
        open_dataset(cache)[1]


def test_non_finite_values_are_unavailable(cache):
    save_file(payload(hidden_states=with_nan()), cache / "hs_1.safetensors")

    assert isinstance(open_dataset(cache)[1], SampleUnavailable)
