"""Upstream's prepare-data and the data sets of its trainer, unpatched and then patched.

    python -m tests.faults.probes.conversation_split FOLDER

The rows are read through `ArrowDataset`, which the trainer's loaders are made of. What a row holds
says which conversation it is from: its first token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.regenerating import tokenizer

TURNS = (1, 2, 5, 3)


def responses(path: Path, conversations: int, renamed: bool = False) -> Path:
    """Rows as regenerate-responses writes them; every tenth has nothing to train on."""
    with path.open("w") as file:
        for c in range(conversations):
            turns = TURNS[c % len(TURNS)]
            for turn in range(turns):
                ids = [c, *range(7, 20 + 3 * turn)]
                mask = [0] * 5 + [int(c % 10 != 9)] * (len(ids) - 5)
                row: dict[str, Any] = {"id": f"c{c}_gen{turn}", "primary_id": f"c{c}"}
                if renamed:
                    row = {"id": f"c{c}"}
                row |= {"input_ids": ids, "loss_mask": mask, "text": "x", "metadata": {"idx": c}}
                file.write(json.dumps(row) + "\n")
    return path


def prepare(data: Path, model: Path, output: Path, workers: int, seed: int) -> Path:
    from speculators.cli.prepare_data import prepare_data

    named = {"skip_token_freq": False} if "skip_token_freq" in _parameters() else {}
    prepare_data(
        model=str(model), data=[str(data)], output=str(output), seq_length=64, seed=seed,
        num_preprocessing_workers=workers, **named,
    )  # fmt: skip
    return output


def _parameters() -> list[str]:
    import inspect

    from speculators.cli.prepare_data import prepare_data

    return list(inspect.signature(prepare_data).parameters)


def sides(folder: Path, ratio: float) -> dict[str, list[Any]]:
    """Of each side: the conversation of every row, and the row's number in the data set."""
    from speculators.train.data import ArrowDataset

    found: dict[str, list[Any]] = {}
    for split in ("train", "val"):
        data = ArrowDataset(max_len=64, datapath=folder, train_ratio=ratio, split=split)
        rows = [data.data[i]["input_ids"][0].item() for i in range(len(data))]
        found[split] = [rows, [data._map_to_file_idx(i) for i in range(len(data))]]
    return found


def shared(found: dict[str, list[Any]]) -> list[int]:
    return sorted(set(found["train"][0]) & set(found["val"][0]))


def whole(folder: Path) -> dict[str, Any]:
    """What is in a prepared folder, whatever its order."""
    from datasets import load_from_disk

    data = load_from_disk(str(folder)).with_format(None)
    counts = torch.load(folder / "token_freq.pt", weights_only=True)
    rows = sorted(zip(data["input_ids"], data["loss_mask"], data["seq_len"], strict=True))
    return {"rows": rows, "tokens": {str(k): v for k, v in sorted(counts.items())}}


def attack(folder: Path) -> list[str]:
    """Any names in any order, at any ratio: disjoint and complete, or refused."""
    from datasets import Dataset

    broken: list[str] = []
    numbers = iter(range(10**6))

    @settings(max_examples=25, deadline=None, database=None, derandomize=True,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(
        st.lists(st.integers(0, 6), min_size=2, max_size=24), st.floats(0.05, 0.95), st.booleans()
    )
    def examine(names: list[int], ratio: float, together: bool) -> None:
        names = sorted(names) if together else names
        path = folder / f"a{next(numbers)}"
        rows = [
            {"input_ids": [n, 1, 2], "loss_mask": [0, 1, 1], "seq_len": 3, "conversation": f"c{n}"}
            for n in names
        ]
        Dataset.from_list(rows).with_format("torch").save_to_disk(str(path))
        if all(set(names[:c]) & set(names[c:]) for c in range(1, len(names))):
            with pytest.raises(ValueError, match="by conversation"):
                sides(path, ratio)
            return
        found = sides(path, ratio)
        assert not shared(found)
        assert found["train"][0] + found["val"][0] == names
        assert found["train"][1] + found["val"][1] == list(range(len(names)))
        if together:
            # No cut between two conversations is nearer to what was asked for.
            asked, got = int(len(names) * ratio), len(found["train"][0])
            free = [c for c in range(1, len(names)) if names[c - 1] != names[c]]
            assert abs(got - asked) == min(abs(c - asked) for c in free)

    try:
        examine()
    except (AssertionError, pytest.fail.Exception) as error:
        broken.append(str(error)[:2000])
    return broken


def main() -> None:
    folder = Path(sys.argv[1])
    model = tokenizer(folder / "model")
    # prepare-data loads a processor, which for a text model is its tokenizer; it asks the config.
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    data = responses(folder / "responses.jsonl", 40)
    import speculators_patches

    unpatched = prepare(data, model, folder / "unpatched", 1, 3)
    found: dict[str, Any] = {"unpatched": shared(sides(unpatched, 0.8))}

    speculators_patches.apply(only=["conversation_split"])
    patched = prepare(data, model, folder / "patched", 1, 3)
    cut = sides(patched, 0.8)
    found |= {
        "patched": shared(cut),
        "share": len(cut["train"][0]) / (len(cut["train"][0]) + len(cut["val"][0])),
        "same_rows": whole(patched) == whole(unpatched),
        "same_again": sides(prepare(data, model, folder / "again", 1, 3), 0.8) == cut,
        "other_seed": sides(prepare(data, model, folder / "seed", 1, 4), 0.8) != cut,
        "two_workers": sides(prepare(data, model, folder / "two", 2, 3), 0.8) == cut,
        "unnamed_data": shared(sides(unpatched, 0.8)),
        "by_id": shared(
            sides(
                prepare(responses(folder / "ids.jsonl", 40, True), model, folder / "ids", 1, 3), 0.8
            )
        ),
        "broken": attack(folder),
    }
    from speculators.data_generation.preprocessing import _append_boundary_rows

    results: dict[str, list[Any]] = {"input_ids": [], "loss_mask": [], "seq_len": []}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for conv in (talk, [*talk, *talk], talk[:1]):
        ends = [n for n in range(1, len(conv) + 1) if conv[n - 1]["role"] == "assistant"]
        rows = [{"input_ids": [1] * 4, "loss_mask": [0, 0, 1, 1], "conv": conv[:n]} for n in ends]
        _append_boundary_rows(results, rows, 64, None)
    found["rendered"] = [len(results["conversation"]), len(set(results["conversation"]))]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
