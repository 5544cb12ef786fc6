"""A learning rate schedule that was changed on purpose, put where the old one stood."""

from __future__ import annotations

from typing import Any


def advance(schedulers: list[Any], steps: list[int]) -> None:
    """Put new schedules at the step where the old ones stood (learning rates follow)."""
    for scheduler, step in zip(schedulers, steps, strict=True):
        scheduler.last_epoch = step
        scheduler._step_count = step + 1
        rates = [
            base * rule(step)
            for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        scheduler._last_lr = rates
