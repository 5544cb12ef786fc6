"""For `speculators/train/trainer.py` and `speculators/train/distributed.py`."""

import torch
import torch.distributed as dist


def _training_device(local_rank: int) -> torch.device | int:
    """Where this rank's tensors are: its accelerator, or the CPU if there is none."""
    return local_rank if torch.accelerator.is_available() else torch.device("cpu")


def without_accelerator(acc):
    if acc is None:
        dist.init_process_group("gloo")
