"""What a NaN does to upstream's trainer, before and after the patch. Prints JSON.

python -m tests.faults.probes.finite FOLDER
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from speculators_patches import apply
from tests.faults import tiny


def outcome(action: Any) -> str:
    try:
        action()
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def nonfinite(tensors: dict[str, torch.Tensor]) -> int:
    return sum(not torch.isfinite(tensor).all() for tensor in tensors.values())


def overflow(trainer: Any) -> float:
    """Distance that one step goes whose gradient norm is infinite while its gradients are not."""
    trainer.train_epoch(0)
    before = tiny.weights(trainer)
    named = dict(trainer.model.named_parameters())
    named["fc.weight"].register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    trainer.train_loader = tiny.loader("R")
    trainer.train_epoch(1)
    return tiny.distance(before, tiny.weights(trainer))


def observe(folder: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    trainer = tiny.trainer(folder, "RRNRNR", optimizer="muon", scheduler_total_steps=100)
    trainer.train_epoch(0)
    after = tiny.weights(trainer)
    seen["bad_weights"] = nonfinite(after)
    seen["schedule"] = trainer.schedulers[0].last_epoch
    seen["save"] = outcome(lambda: trainer.maybe_save_checkpoint(0))
    reference = tiny.trainer(folder, "RRRR", optimizer="muon", scheduler_total_steps=100)
    reference.train_epoch(0)
    seen["as_without_the_bad_batches"] = tiny.distance(after, tiny.weights(reference))
    seen["overflow"] = overflow(
        tiny.trainer(folder, "RRR", optimizer="muon", scheduler_type="none")
    )

    trainer = tiny.trainer(folder, "RNNNNN", optimizer="adamw")
    seen["in_a_row"] = outcome(lambda: trainer.train_epoch(0))
    seen["in_a_row_bad_weights"] = nonfinite(tiny.weights(trainer))

    trainer = tiny.trainer(folder / "best", "R", save_best=True)
    out = trainer.checkpointer.path
    trainer.maybe_update_best(0, {"loss_epoch": 1.0})
    trainer.maybe_update_best(1, {"loss_epoch": math.nan})
    seen["best"] = (out / "checkpoint_best").resolve().name
    seen["folders"] = sorted(path.name for path in out.iterdir() if not path.is_symlink())

    trainer = tiny.trainer(folder / "torn", "R", save_best=True)
    with torch.no_grad():
        dict(trainer.model.named_parameters())["fc.weight"][3, 4] = torch.inf
    seen["bad_state"] = outcome(lambda: trainer.maybe_update_best(0, {"loss_epoch": 1.0}))
    seen["bad_state_written"] = (trainer.checkpointer.path / "0").exists()
    return seen


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    results = {}
    for state in ("unpatched", "patched"):
        apply(only=["cpu_training", *(["finite_guard"] if state == "patched" else [])])
        (folder / state).mkdir()
        results[state] = observe(folder / state)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
