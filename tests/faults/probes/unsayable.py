"""Loss, gradients and acceptance with and without positions that the drafter cannot say. JSON.

python -m tests.faults.probes.unsayable FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from speculators_patches import apply
from speculators_patches.patches.unsayable_positions import SETTING
from tests.faults import tiny

SPOKEN = list(range(0, tiny.VOCABULARY, 2))


def step(folder: Path, ids: torch.Tensor, batch: dict[str, Any]) -> dict[str, Any]:
    """One training step's loss, its gradients' sum, and acceptance."""
    torch.manual_seed(0)
    model = tiny.drafter(folder, SPOKEN)
    given = {**batch, "input_ids": ids}
    _, loss, metrics = model(**given, ttt_steps=2, loss_config=tiny.eager_loss())
    loss.backward()
    grads = [p.grad.abs().sum() for p in model.parameters() if p.grad is not None]
    return {
        "loss": loss.item(),
        "gradient": float(sum(grads)),
        "metrics": {name: value.item() for name, value in metrics.items()},
    }


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    batch = {k: v for k, v in tiny.Batches("R")[0].items() if isinstance(v, torch.Tensor)}
    for name in ("hidden_states", "verifier_last_hidden_states"):
        batch[name] = batch[name].float()
    texts = {
        "odd": torch.full_like(batch["input_ids"], 7),
        "even": torch.full_like(batch["input_ids"], 8),
        "mixed": batch["input_ids"],
    }
    results: dict[str, Any] = {}
    apply(only=["accuracy_denominators", "unsayable_positions"])
    for setting in ("", "mask"):
        os.environ[SETTING] = setting
        results[setting or "upstream"] = {k: step(folder, v, batch) for k, v in texts.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
