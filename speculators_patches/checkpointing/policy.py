"""When to save and what to keep: two frozen settings and pure functions over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speculators_patches.checkpointing.reading import Record

BEST = "best"


@dataclass(frozen=True)
class When:
    """When the training loop saves by itself.

    Attributes:
        every_steps: at every multiple of this many optimizer steps (None: not by steps).
        every_minutes: when this many minutes have passed since the last save began (None: not by
            time).
    """

    every_steps: int | None = None
    every_minutes: float | None = 10.0

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"--checkpoint-every-steps must be at least 1, got {self.every_steps}")
        if self.every_minutes is not None and not self.every_minutes > 0:
            raise ValueError(
                f"--checkpoint-every-minutes must be above 0, got {self.every_minutes}"
            )

    def due_by_steps(self, step: int, last: int) -> bool:
        """Whether a multiple of `every_steps` lies in (last, step].

        A save that had to be delayed therefore stays due. `last` is the step of the last save
        begun (or of the resume).
        """
        return self.every_steps is not None and step // self.every_steps > last // self.every_steps

    def due_by_time(self, seconds: float) -> bool:
        """Whether `seconds` since the last save began are enough."""
        return self.every_minutes is not None and seconds >= 60 * self.every_minutes


@dataclass(frozen=True)
class Keep:
    """What pruning leaves, counted over committed, whole checkpoints only.

    Attributes:
        last: the newest ones (at least 1).
        best: the newest one tagged "best".
        every_steps: of every stretch of this many steps the first one saved in it (None: none).
    """

    last: int = 3
    best: bool = True
    every_steps: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"--checkpoint-keep must be at least 1, got {self.last}")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(
                f"--checkpoint-keep-every must be at least 1 step, got {self.every_steps}"
            )


def doomed(records: Sequence[Record], keep: Keep) -> list[str]:
    """Names to remove, oldest first. Records with a problem are neither counted nor removed."""
    good = sorted((r for r in records if not r.problem), key=lambda r: r.sequence, reverse=True)
    kept = {record.name for record in good[: keep.last]}
    if keep.best:
        kept.update([record.name for record in good if BEST in record.tags][:1])
    if keep.every_steps is not None:
        first: dict[int, Record] = {}
        for record in sorted(good, key=lambda r: (r.step, r.sequence)):
            if (stretch := record.step // keep.every_steps) > 0:
                first.setdefault(stretch, record)
        kept.update(record.name for record in first.values())
    return [record.name for record in reversed(good) if record.name not in kept]
