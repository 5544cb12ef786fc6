"""What ranks must agree on, and how.

Decisions (save now, under this name) are made on the training thread with one small all-gather on a
gloo group of our own: no accelerator is synchronised, and no collective ever runs on a background
thread, where it could interleave with the training's and hang both. The commit itself needs no
collective: every rank writes into the shared staging folder and leaves a sealed report there; rank
0 publishes when all reports are in. A dead rank therefore can't hang a save, only fail it.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, Protocol

from speculators_patches.checkpointing.errors import SaveFailedError

# A gathered value is padded to this many bytes, so that one collective does.
GATHERED_BYTES = 8192


def brief(text: str) -> str:
    """`text` cut so that it can be gathered, whatever paths and letters it holds.

    A value that does not fit would raise on one rank and leave the others waiting for it.
    """
    return text[: GATHERED_BYTES // 16]  # JSON writes up to 12 bytes for a character


class Coordinator(Protocol):
    """The ranks of a run, seen from one of them."""

    rank: int
    world_size: int

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's `value` (plain JSON), in rank order. All ranks must call it together.

        Raises:
            SaveFailedError: a rank is gone or does not answer.
        """
        ...


class Alone:
    """A single process."""

    rank = 0
    world_size = 1

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        return [value]


class Gloo:
    """The ranks of torch.distributed's default group, over a gloo group of our own.

    Must be constructed by all ranks together (it creates the group).

    Args:
        timeout_s: how long a rank waits for the others.
    """

    def __init__(self, timeout_s: float = 120.0):
        import torch.distributed as dist

        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        import torch
        import torch.distributed as dist

        data = json.dumps(value).encode()
        if len(data) > GATHERED_BYTES:
            raise ValueError(f"at most {GATHERED_BYTES} bytes can be gathered, got {len(data)}")
        mine = torch.frombuffer(bytearray(data.ljust(GATHERED_BYTES)), dtype=torch.uint8)
        everyone = [torch.empty_like(mine) for _ in range(self.world_size)]
        try:
            dist.all_gather(everyone, mine, group=self._group)
        except RuntimeError as error:
            raise SaveFailedError(
                f"rank {self.rank}: the ranks can't agree on a checkpoint, one is gone or stuck "
                f"({error})"
            ) from None
        return [json.loads(bytes(one.numpy())) for one in everyone]
