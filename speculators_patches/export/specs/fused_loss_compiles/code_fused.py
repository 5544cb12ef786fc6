"""For `speculators/losses/fused.py`."""

import torch
from packaging import version


def module(_prune_oversized_tiles):
    # Before torch 2.12 dynamo traces one launch of a kernel with a pruning callback and
    # fails at the next (pytorch/pytorch#177874). Oversized tiles then cost tuning time.
    _PRUNE_BY = (
        {"early_config_prune": _prune_oversized_tiles}
        if version.parse(torch.__version__).release >= (2, 12)
        else None
    )
