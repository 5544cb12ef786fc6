"""What batches without data do to upstream's trainer, before and after the patch. Prints JSON.

python -m tests.faults.probes.skip_empty FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from speculators_patches import apply
from tests.faults import tiny


def moved(folder: Path, optimizer: str, empty: str) -> dict[str, Any]:
    """After 12 real steps: how far 30 batches of kind `empty` move weights and the schedule."""
    trainer = tiny.trainer(folder, "R" * 12, optimizer=optimizer, scheduler_total_steps=100)
    start = tiny.weights(trainer)
    trainer.train_epoch(0)
    before = tiny.weights(trainer)
    rate = [opt.param_groups[0]["lr"] for opt in trainer.optimizers]
    trainer.train_loader = tiny.loader(empty * 30)
    trainer.train_epoch(1)
    return {
        "by_real_steps": tiny.distance(start, before),
        "by_empty_steps": tiny.distance(before, tiny.weights(trainer)),
        "schedule_moved": rate != [opt.param_groups[0]["lr"] for opt in trainer.optimizers],
        "global_step": trainer.global_step,
    }


def outcome(action: Any) -> str:
    try:
        action()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def observe(folder: Path) -> dict[str, Any]:
    os.environ["SPECULATORS_PATCHES_MAX_LOST_SHARE"] = "1"
    seen: dict[str, Any] = {
        f"{optimizer}_{empty}": moved(folder, optimizer, empty)
        for optimizer in ("muon", "adamw")
        for empty in "EM"
    }
    trainer = tiny.trainer(folder, "R", "RR")
    seen["validation"] = trainer.val_epoch(0)
    trainer.val_loader = tiny.loader("REMR")
    seen["validation_with_empty"] = trainer.val_epoch(0)
    trainer.val_loader = tiny.loader("EE")
    seen["empty_validation"] = outcome(lambda: trainer.val_epoch(0))
    trainer = tiny.trainer(folder, "EEE")
    seen["empty_epoch"] = outcome(trainer.run_training)
    del os.environ["SPECULATORS_PATCHES_MAX_LOST_SHARE"]
    trainer = tiny.trainer(folder, "R" * 5 + "E" * 40)
    seen["many_lost"] = outcome(lambda: trainer.train_epoch(0))
    seen["many_lost_step"] = trainer.global_step
    trainer = tiny.trainer(folder, "R" * 8, optimizer="muon")
    trainer.train_epoch(0)
    seen["undisturbed"] = {n: w.double().sum().item() for n, w in tiny.weights(trainer).items()}
    return seen


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    apply(only=["cpu_training"])
    unpatched = observe(folder)
    apply(only=["skip_empty_steps"])
    print(json.dumps({"unpatched": unpatched, "patched": observe(folder)}))


if __name__ == "__main__":
    main()
