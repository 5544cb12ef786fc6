"""A training process to be killed: `python -m tests.faults.checkpoint_process ROOT TOTAL EVERY`.

Trains the small run of `tests/unit/checkpoint_run.py` to TOTAL steps, saving every EVERY steps,
resuming by itself. Writes, at the end, ROOT/result.json with the SHA-256 of everything that must be
bitwise equal, and one line per step on stdout. Not a test module.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from speculators_patches.checkpointing.policy import When
from tests.unit.checkpoint_run import at, build, checkpoints


def main(root: Path, total: int, every: int) -> None:
    run = build()
    with checkpoints(root / "saves", run, when=When(every, None)) as saves:
        step = 0
        if (found := saves.find()) is not None:
            saves.restore(found)
            saves.restore_rng(found)
            step = found.cursor.global_step
        print(f"from {step}", flush=True)
        with (root / "losses").open("a") as losses:
            while step < total:
                (loss,) = run.train(1)
                step += 1
                losses.write(f"{step} {loss.hex()}\n")
                losses.flush()
                saves.step(at(step))
                print(f"step {step}", flush=True)
        saves.save(at(step), "final", wait_s=60, commit_s=60)
    digest = hashlib.sha256(repr(sorted(run.bits().items())).encode()).hexdigest()
    (root / "result.json").write_text(json.dumps({"sha256": digest, "steps": step}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
