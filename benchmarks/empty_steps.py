"""How far batches without data move a drafter: upstream's trainer, unpatched and patched.

    python -m benchmarks.empty_steps          # writes benchmarks/results/empty_steps.json

A random EAGLE-3 drafter (tests/faults/tiny.py) trains 100 real steps at a constant learning rate
with upstream's Trainer on the CPU. From there it takes 400 steps on batches whose samples all
failed, and, as the measure, up to 400 more real ones. Reported: the Euclidean distance over all
trained weights, and after how many real steps the drafter is as far away. Deterministic; one run.
Run it in a checkout: the drafter and the batches are those of the tests.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

WARM, EMPTY, REAL = 100, 400, 400
RESULT = Path(__file__).parent / "results" / "empty_steps.json"


def distances(folder: Path, optimizer: str, plan: str) -> list[float]:
    """Distance from the weights after `WARM` steps, after each later batch of the plan."""
    from tests.faults import tiny

    trainer = tiny.trainer(
        folder, plan, None, optimizer=optimizer, scheduler_type="none", log_freq=10**6
    )
    start: dict[str, Any] = {}
    found: list[float] = []
    schedule = trainer._schedulers_step
    batches = 0

    def note() -> None:  # called once a batch, after the optimizers
        nonlocal batches
        schedule()
        batches += 1
        if batches == WARM:
            start.update(tiny.weights(trainer))
        elif batches > WARM:
            found.append(tiny.distance(start, tiny.weights(trainer)))

    trainer._schedulers_step = note
    trainer.train_epoch(0)
    return found


def measure(folder: Path, optimizer: str) -> dict[str, float | int | None]:
    """Distances for one optimizer with whatever patches are in force."""
    empty = distances(folder, optimizer, "R" * WARM + "E" * EMPTY)[-1]
    real = distances(folder, optimizer, "R" * (WARM + REAL))
    as_far = next((step for step, gone in enumerate(real, 1) if gone >= empty > 0), None)
    return {"empty_distance": empty, "real_distance": real[-1], "real_steps_as_far": as_far}


def main() -> None:
    """Measures and writes the result."""
    from speculators_patches import apply
    from tests.faults import tiny

    tiny.quiet()
    os.environ["SPECULATORS_PATCHES_MAX_LOST_SHARE"] = "1"  # the limit would stop it
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for state, patches in (("unpatched", []), ("patched", ["skip_empty_steps"])):
            apply(only=["cpu_training", *patches])
            found[state] = {
                optimizer: measure(Path(folder), optimizer) for optimizer in ("muon", "adamw")
            }
    RESULT.parent.mkdir(exist_ok=True)
    record = {
        "command": "python -m benchmarks.empty_steps",
        "steps": {"warm": WARM, "empty": EMPTY, "real": REAL},
        "versions": {name: version(name) for name in ("speculators", "torch", "transformers")},
        "python": platform.python_version(),
        "hardware": f"{platform.machine()} CPU",
        "runs": 1,
        **found,
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    json.dump(record, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
