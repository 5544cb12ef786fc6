"""For `speculators/train/cli.py`."""

import os

import torch


def algorithms():
    # cuBLAS reads this at its first use; 4096 KiB x 8 is PyTorch's own advice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
