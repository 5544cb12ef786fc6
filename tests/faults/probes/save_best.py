"""What --save-best deletes, before and after the patch. Prints JSON.

python -m tests.faults.probes.save_best FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from speculators_patches import apply
from tests.faults import tiny


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def observe(folder: Path) -> dict[str, Any]:
    out = folder / "out"
    (out / "7" / "deep").mkdir(parents=True)
    (out / "7" / "deep" / "model.safetensors").write_text("another run's")
    (out / "notes").mkdir()
    (out / "run.yaml").write_text("train: {}")
    (out / "checkpoint_best").mkdir()
    (out / "checkpoint_best" / "mine").write_text("kept by hand")
    seen: dict[str, Any] = {}
    first = tiny.trainer(folder, "R", save_best=True, num_epochs=4)
    for epoch, loss in enumerate((3.0, 2.0)):
        first.maybe_update_best(epoch, {"loss_epoch": loss})
    seen["first"] = listing(out)
    (out / "7").exists() and (out / "7").rename(out / "old")  # so that the run resumes its own
    again = tiny.trainer(folder, "R", save_best=True, num_epochs=4, resume_from_checkpoint=True)
    seen["resumes"] = again.current_epoch
    again.maybe_update_best(2, {"loss_epoch": 1.0})
    seen["resumed"] = listing(out)
    other = tiny.trainer(folder, "R", save_best=True, num_epochs=4)
    for epoch, loss in ((0, 3.0), (1, 2.0)):
        other.maybe_update_best(epoch, {"loss_epoch": loss})
    seen["another_run"] = listing(out)
    seen["best"] = (out / "checkpoint_best").readlink().name
    return seen


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    results = {}
    for state in ("unpatched", "patched"):
        apply(only=["cpu_training", *(["save_best_scope"] if state == "patched" else [])])
        (folder / state).mkdir()
        results[state] = observe(folder / state)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
