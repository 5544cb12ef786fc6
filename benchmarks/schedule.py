"""Which arm answers which prompts when: in blocks, so that drift of the machine hits all alike.

A block is a share of the prompts, answered by every arm before the next block begins. Blocks run
through the arms forwards and backwards in turn (A B C, C B A, ...), so that no arm is always first;
the arm at the turn keeps its server, which saves a start where servers do not fit side by side.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.prompts import WorkloadPrompt


@dataclass(frozen=True)
class Visit:
    """One arm (by its place in the list) on one block."""

    block: int
    arm: int

    @property
    def name(self) -> str:
        return f"{self.block:03d}-{self.arm:03d}"


def visits(arms: int, blocks: int) -> Iterator[Visit]:
    """All visits in order."""
    for block in range(blocks):
        order = range(arms) if block % 2 == 0 else range(arms - 1, -1, -1)
        yield from (Visit(block, arm) for arm in order)


def share(
    prompts: Sequence[WorkloadPrompt], block: int, blocks: int, concurrency: int
) -> list[WorkloadPrompt]:
    """The prompts of one workload that a block asks at one concurrency.

    Every prompt is asked once. Where a block's share would not fill twice the concurrency, fewer
    blocks hold larger shares, and the last blocks none.
    """
    used = max(1, min(blocks, len(prompts) // max(1, 2 * concurrency)))
    return [p for k, p in enumerate(prompts) if k % used == block]


def seed_of(prompt_id: str, seed: int) -> int:
    """The sampling seed of a prompt: the same in every arm, and another one for each prompt."""
    return (zlib.crc32(prompt_id.encode()) + seed) % 2**31
