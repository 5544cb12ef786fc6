"""Gradients that are added up in the same order in a process's first step as in every later one.

DDP adds the ranks' gradients bucket by bucket, and after a process's first step it fills the
buckets anew, in the order in which the gradients arrived (torch 2.13, reducer.cpp,
`rebuild_buckets`). With three or more ranks an element's place in its bucket decides in which order
the ranks' values are added, so the first step of a resumed process would round differently from the
same step of a run that was never stopped. Where steps repeat themselves at all, DDP is made so that
it keeps its first buckets: it looks for parameters without a gradient, of which there are none.
"""

from __future__ import annotations

import functools
from typing import Any

_LEAST_RANKS = 3  # two values have one sum in either order


def keep_the_first(trainer: Any) -> None:
    """To be called before upstream wraps the drafter; `as_upstream` undoes it.

    Args:
        trainer: upstream's, past `setup_trainer`.
    """
    import torch
    import torch.distributed as dist
    from speculators.train import trainer as theirs
    from torch.nn.parallel import DistributedDataParallel

    if not trainer.is_distributed or dist.get_world_size() < _LEAST_RANKS:
        return
    if trainer.device_type == "cpu" or torch.are_deterministic_algorithms_enabled():
        theirs.DistributedDataParallel = functools.partial(
            DistributedDataParallel, find_unused_parameters=True
        )


def as_upstream() -> None:
    """Upstream's module has its own name again."""
    from speculators.train import trainer as theirs
    from torch.nn.parallel import DistributedDataParallel

    theirs.DistributedDataParallel = DistributedDataParallel
