"""Two ranks of which one, or both, get a batch without data. Each writes JSON to FOLDER/<rank>.

torchrun --nproc-per-node 2 -m tests.faults.probes.ranks FOLDER [PATCH ...]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from speculators_patches import apply
from tests.faults import tiny


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    os.environ["SPECULATORS_PATCHES_MAX_LOST_SHARE"] = "1"
    apply(only=["cpu_training", *sys.argv[2:]])
    from speculators.train.distributed import maybe_destroy_distributed, maybe_setup_distributed
    from speculators.train.trainer import Trainer

    maybe_setup_distributed()
    rank = int(os.environ["RANK"])
    steps = []
    upstream = Trainer._optimizers_step

    def note(self: Any) -> None:
        before = tiny.weights(self)
        upstream(self)
        steps.append(tiny.distance(before, tiny.weights(self)) > 0)

    Trainer._optimizers_step = note
    trainer = tiny.trainer(
        folder,
        ("RRE", "REE")[rank],
        ("RE", "EE")[rank],
        optimizer="muon",
        scheduler_type="none",
        log_freq=10**6,
    )
    # 0.8.1 reduces a float on rank 0 with an int on rank 1 when it logs, which gloo refuses.
    trainer.global_step = 1
    trainer.train_loader = tiny.loader(("R", "E")[rank])
    trainer.train_epoch(0)
    gradient = {
        name: parameter.grad.double().abs().sum().item()
        for name, parameter in trainer.model.module.named_parameters()
        if parameter.grad is not None
    }
    trainer.train_loader = tiny.loader(("RRE", "REE")[rank])
    trainer.train_epoch(1)
    found = {
        "gradient": gradient,
        "steps": steps,
        "weights": {n: w.double().sum().item() for n, w in tiny.weights(trainer).items()},
        "validation": trainer.val_epoch(1),
    }
    (folder / str(rank)).write_text(json.dumps(found))
    maybe_destroy_distributed()


if __name__ == "__main__":
    main()
