"""Validation metrics of upstream's drafter, and the text and logits that they are about. JSON.

python -m tests.faults.probes.expected FOLDER
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
SPOKEN = list(range(0, tiny.VOCABULARY, 2))


def validate(folder: Path, spoken: list[int] | None, *, training: bool) -> dict[str, Any]:
    model = tiny.drafter(folder, spoken)
    batch = {k: v for k, v in tiny.Batches("R")[0].items() if isinstance(v, torch.Tensor)}
    for name in ("hidden_states", "verifier_last_hidden_states"):
        batch[name] = batch[name].float()
    heads: dict[str, list[torch.Tensor]] = {"q": [], "p": []}
    model.lm_head.register_forward_hook(lambda _m, _i, out: heads["q"].append(out[0].detach()))
    model.verifier_lm_head.register_forward_hook(
        lambda _m, _i, out: heads["p"].append(out[0].detach())
    )
    with torch.set_grad_enabled(training):
        _, loss, metrics = model(**batch, ttt_steps=STEPS, loss_config=tiny.eager_loss())
    return {
        "loss": loss.item(),
        "metrics": {name: value.item() for name, value in metrics.items()},
        "text": batch["input_ids"][0].tolist(),
        "mask": batch["loss_mask"][0].tolist(),
        "q": [one.tolist() for one in heads["q"]],
        "p": heads["p"][0].tolist(),
    }


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    results: dict[str, Any] = {"spoken": SPOKEN}
    for state in ("unpatched", "patched"):
        names = ["accuracy_denominators", "expected_acceptance"] if state == "patched" else []
        apply(only=names)
        results[state] = {
            "full": validate(folder, None, training=False),
            "pruned": validate(folder, SPOKEN, training=False),
            "training": validate(folder, None, training=True),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
