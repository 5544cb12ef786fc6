"""What bad files in the cache of hidden states do to upstream's data set. Prints JSON.

    python -m tests.faults.probes.cache FOLDER PATCH [...]

FOLDER/data is a prepared data set whose cache has one row of each kind in `KINDS`. For each row: a
sample, an unavailable one with its reason, or the error that would have ended the run.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from speculators_patches import apply
from tests.faults import tiny

KINDS = (
    "good", "truncated", "garbage", "empty", "locked", "stale_lock", "no_states", "short",
    "other_tokens", "layers", "nan", "directory", "good",
)  # fmt: skip


def build(folder: Path) -> None:
    """Writes the data set and its cache."""
    from datasets import Dataset
    from safetensors.torch import save_file

    cache = folder / "data" / "hidden_states"
    cache.mkdir(parents=True)
    rows = []
    for index, kind in enumerate(KINDS):
        ids = tiny.sample(index)["input_ids"]
        rows.append({"input_ids": ids.tolist(), "loss_mask": [1] * len(ids), "seq_len": len(ids)})
        states = torch.randn(tiny.TOKENS, 4, tiny.HIDDEN).to(torch.bfloat16)
        tensors = {"hidden_states": states, "token_ids": ids}
        if kind == "no_states":
            del tensors["hidden_states"]
        elif kind == "short":
            tensors["hidden_states"] = states[:-1].clone()
        elif kind == "other_tokens":
            tensors["token_ids"] = ids.roll(1)
        elif kind == "layers":
            tensors["hidden_states"] = states[:, 1:].clone()
        elif kind == "nan":
            states[3, 2, 1] = torch.nan
        path = cache / f"hs_{index}.safetensors"
        if kind == "directory":
            path.mkdir()
            continue
        save_file(tensors, path)
        if kind == "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        elif kind == "garbage":
            path.write_bytes(b"\xff" * 400)
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind in ("locked", "stale_lock"):
            path.with_name(path.name + ".lock").touch()
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))


def read(dataset: Any, index: int) -> str:
    from speculators.train.recovery import SampleUnavailable

    try:
        found = dataset[index]
    except Exception as error:  # noqa: BLE001  (the point is which ones get out)
        return f"error {type(error).__name__}"
    if isinstance(found, SampleUnavailable):
        return f"unavailable {found.counts_as_failure} {found.fatal} {found.reason}"
    width = found["hidden_states"].shape[1]
    finite = bool(torch.isfinite(found["hidden_states"]).all())
    in_step = len(found["hidden_states"]) == len(found["input_ids"])
    return "sample" if width == 3 * tiny.HIDDEN and finite and in_step else "bad sample"


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    apply(only=sys.argv[2:])
    from speculators.train.data import ArrowDataset
    from speculators.train.dataloader import _setup_dataloader

    dataset = ArrowDataset(tiny.TOKENS, folder / "data", on_missing="raise")
    workers = int(os.environ.get("PROBE_WORKERS", "0"))
    loader = _setup_dataloader(
        dataset, tiny.TOKENS, tiny.HIDDEN, num_workers=workers, num_target_layers=3
    )
    lock = folder / "data" / "hidden_states" / f"hs_{KINDS.index('locked')}.safetensors.lock"
    with lock.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if workers:
            batches = [batch["error_records"] for batch in loader]
            print(json.dumps({"batches": len(batches), "lost": sum(batches)}))
        else:
            print(json.dumps([read(dataset, index) for index in range(len(KINDS))]))


if __name__ == "__main__":
    main()
