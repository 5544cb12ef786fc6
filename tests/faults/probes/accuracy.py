"""What the drafter's metrics say, before and after the patch. Prints JSON.

    python -m tests.faults.probes.accuracy FOLDER

`perfect`: upstream's compute_metrics for logits equal to the targets, over replies of 20 tokens.
`drafter`: upstream's Eagle3DraftModel with a pruned vocabulary, its drafts, and the text it saw.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from speculators_patches import apply
from tests.faults import tiny

STEPS = 3
SPOKEN = list(range(0, tiny.VOCABULARY, 2))  # the drafter can say even ids only


def ratios(metrics: dict[str, torch.Tensor]) -> dict[str, float]:
    return {
        name.removesuffix("_total"): (metrics[name[:-5] + "sum"] / metrics[name]).item()
        for name in metrics
        if name.endswith("_total") and "loss" not in name and "kl" not in name
    }


def perfect() -> dict[str, float]:
    from speculators.models.eagle3 import core

    mask = torch.zeros(1, 120, dtype=torch.bool)
    for start in (10, 50, 90):
        mask[:, start : start + 20] = True
    targets = torch.randn(1, 120, 16, generator=torch.Generator().manual_seed(0))
    correct = mask.clone()
    losses = tiny.eager_loss()
    metrics: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        width = 120 - step
        logits = torch.cat([targets[:, step:], torch.zeros(1, 120 - width, 16)], dim=1)
        loss, found = core.compute_metrics(logits, targets, mask, correct, step, 1.0, losses)
        metrics |= found | {f"loss_{step}": loss}
    return ratios(metrics)


def drafts(folder: Path) -> dict[str, Any]:
    model = tiny.drafter(folder, SPOKEN)
    batch = tiny.Batches("R")[0]
    batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    batch["hidden_states"] = batch["hidden_states"].float()
    batch["verifier_last_hidden_states"] = batch["verifier_last_hidden_states"].float()
    with torch.no_grad():
        tokens, _, _ = model(**batch, ttt_steps=STEPS, loss_config=tiny.eager_loss())
        # A text that the drafter gets right in part: after every 3rd token, what it says itself.
        ids = batch["input_ids"].clone()
        for start in range(1, ids.shape[1] - 2, 3):
            for step in (0, 1):
                ids[0, start + 1 + step] = SPOKEN[int(tokens[step][0, start])]
        batch["input_ids"] = ids
        tokens, loss, metrics = model(**batch, ttt_steps=STEPS, loss_config=tiny.eager_loss())
    return {
        "loss": loss.item(),
        "text": ids[0].tolist(),
        "mask": batch["loss_mask"][0].tolist(),
        "said": [[SPOKEN[int(token)] for token in step[0]] for step in tokens],
        "metrics": {name: value.item() for name, value in metrics.items()},
    }


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    results: dict[str, Any] = {}
    for state in ("unpatched", "patched"):
        apply(only=["accuracy_denominators"] if state == "patched" else [])
        results[state] = {"perfect": perfect(), "drafter": drafts(folder)}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
