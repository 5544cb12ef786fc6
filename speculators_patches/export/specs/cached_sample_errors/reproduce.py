"""One of two cached files is truncated, the other lacks a row."""

import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file

from speculators.train.data import ArrowDataset

folder = Path(tempfile.mkdtemp())
rows = [{"input_ids": [1, 2, 3], "loss_mask": [0, 1, 1], "seq_len": 3}] * 2
Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder))
cache = folder / "hidden_states"
cache.mkdir()
for index, length in ((0, 3), (1, 2)):
    states = torch.zeros(length, 4, 8, dtype=torch.bfloat16)
    tensors = {"hidden_states": states, "token_ids": torch.tensor([1, 2, 3])}
    save_file(tensors, cache / f"hs_{index}.safetensors")
file = cache / "hs_0.safetensors"
file.write_bytes(file.read_bytes()[:-20])

dataset = ArrowDataset(8, folder, on_missing="raise")
try:
    truncated, short = dataset[0], dataset[1]
except Exception as error:
    print(f"DEFECT: the run ends: {type(error).__name__}: {error}")
    sys.exit(1)
print(f"OK: {truncated.reason}; {short.reason}")
