"""A batch that timed out meets bfloat16 weights."""

import sys

import torch

from speculators.train.data import create_collate_fn

batch = create_collate_fn(16, 8)([None, None])
fc = torch.nn.Linear(3 * 8, 8, dtype=torch.bfloat16)
try:
    fc(batch["hidden_states"])
except RuntimeError as error:
    print(f"DEFECT: the run ends: {error}")
    sys.exit(1)
print(f"OK: {batch['hidden_states'].dtype}, {batch['input_ids'].dtype}")
