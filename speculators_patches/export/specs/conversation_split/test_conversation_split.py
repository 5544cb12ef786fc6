"""No conversation is on both sides of the split."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from speculators.data_generation.preprocessing import load_and_preprocess_dataset
from speculators.train.data import ArrowDataset


@pytest.fixture
def model(tmp_path):
    words = {str(number): number for number in range(64)} | {"<unk>": 64}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    path = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return str(path)


def write_rows(path, turns, *, with_ids=True):
    """One conversation per entry; its number is every row's first token."""
    with path.open("w") as file:
        for conversation, count in enumerate(turns):
            for turn in range(count):
                ids = [conversation, *range(30, 40 + turn)]
                row = {"input_ids": ids, "loss_mask": [0] * 5 + [1] * (len(ids) - 5)}
                if with_ids:
                    row["id"] = f"c{conversation}_gen{turn}"
                    row["primary_id"] = f"c{conversation}"
                file.write(json.dumps(row) + "\n")
    return str(path)


def prepare(model, rows, out, seed=0):
    data, _ = load_and_preprocess_dataset(
        model, [rows], seq_length=64, build_dataset_num_proc=1, seed=seed
    )
    data.save_to_disk(str(out))
    return out


def conversations(path, split, ratio):
    side = ArrowDataset(64, path, train_ratio=ratio, split=split)
    return [int(row["input_ids"][0]) for row in side.data]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ratio", [0.5, 0.8, 0.95])
def test_both_sides_are_disjoint_and_complete(model, tmp_path, seed, ratio):
    turns = [1, 2, 5, 3] * 4
    rows = write_rows(tmp_path / "rows.jsonl", turns)
    data = prepare(model, rows, tmp_path / "data", seed)

    train = conversations(data, "train", ratio)
    val = conversations(data, "val", ratio)

    assert not set(train) & set(val)
    assert sorted(train + val) == sorted(
        c for c, count in enumerate(turns) for _ in range(count)
    )
    # Less than half a conversation away from where it would have been.
    assert abs(len(train) - int(sum(turns) * ratio)) <= 3


def test_one_turn_each_is_split_where_it_was(model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [1] * 10)
    data = prepare(model, rows, tmp_path / "data")

    assert len(conversations(data, "train", 0.7)) == 7


def test_rows_without_an_id_are_conversations_of_their_own(model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [2] * 5, with_ids=False)
    data = prepare(model, rows, tmp_path / "data")

    assert len(conversations(data, "train", 0.5)) == 5


def test_0_is_an_id_like_any_other(model, tmp_path):
    rows = tmp_path / "rows.jsonl"
    with rows.open("w") as file:
        for number in range(8):
            conversation = number % 2
            row = {"id": conversation, "input_ids": [conversation, 30, 31 + number]}
            file.write(json.dumps(row | {"loss_mask": [0, 1, 1]}) + "\n")
    data = prepare(model, str(rows), tmp_path / "data")

    train = conversations(data, "train", 0.5)

    assert len(train) == 4
    assert len(set(train)) == 1


def test_an_older_data_set_is_split_as_before(tmp_path):
    rows = [{"input_ids": [n], "loss_mask": [1], "seq_len": 1} for n in range(10)]
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(tmp_path / "old"))

    assert conversations(tmp_path / "old", "train", 0.75) == list(range(7))


def test_one_conversation_cannot_be_split(model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [6])
    data = prepare(model, rows, tmp_path / "data")

    with pytest.raises(ValueError, match="conversation"):
        ArrowDataset(64, data, train_ratio=0.5, split="train")


def test_sample_tensors_are_unchanged(model, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [1])
    data = prepare(model, rows, tmp_path / "data")

    row = ArrowDataset(64, data).data[0]

    assert torch.equal(row["input_ids"], torch.tensor([0, *range(30, 40)]))
    assert int(row["loss_mask"].sum()) == 6
