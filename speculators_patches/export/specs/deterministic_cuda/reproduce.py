"""Does the flag reach an operation that has no deterministic kernel?"""

import sys

import torch

from speculators.train.cli import set_seed

set_seed(0, deterministic=True)
try:
    torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
except RuntimeError as error:
    print(f"OK: {str(error)[:60]}")
    sys.exit(0)
print("DEFECT: --deterministic-cuda lets an operation without an order pass")
sys.exit(1)
