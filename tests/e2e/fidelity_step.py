"""Upstream's trainer with the default patches, writing down the targets that its steps see.

    python -m tests.e2e.fidelity_step FILE.pt FLAGS OF UPSTREAM'S TRAIN

FILE.pt gets one entry a training batch: input_ids [tokens], document_ids [tokens] (-1 is padding),
the body's last hidden states [tokens, hidden size], and targets [tokens, draft vocabulary] as
upstream's own `compute_metrics` is given them.
"""

from __future__ import annotations

import runpy
import sys
from typing import Any

import torch

from speculators_patches import apply


def main() -> None:
    out = sys.argv[1]
    apply()
    from speculators.models.eagle3 import core

    batches: list[dict[str, torch.Tensor]] = []
    current: dict[str, torch.Tensor] = {}
    forward, compute = core.Eagle3DraftModel.forward, core.compute_metrics

    def watch_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        current.clear()
        current.update(ids=kwargs["input_ids"][0].clone(), documents=kwargs["document_ids"][0])
        current["last"] = kwargs["verifier_last_hidden_states"][0].clone()
        if self.d2t is not None:
            current["sayable"] = self.d2t + torch.arange(len(self.d2t))
        output = forward(self, *args, **kwargs)
        if self.training:
            batches.append(dict(current))
            torch.save(batches, out)
        return output

    def watch_compute(logits: Any, targets: torch.Tensor, *rest: Any, **more: Any) -> Any:
        current.setdefault("targets", targets[0].detach().clone())
        return compute(logits, targets, *rest, **more)

    core.Eagle3DraftModel.forward = watch_forward
    core.compute_metrics = watch_compute
    sys.argv = ["speculators.train", *sys.argv[2:]]
    runpy.run_module("speculators.train", run_name="__main__")


if __name__ == "__main__":
    main()
