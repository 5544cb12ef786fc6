"""Stop after the first of two epochs and resume
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/train")
from test_resume_precision import make_trainer, use_cpu, weights

use_cpu()
folder = Path(tempfile.mkdtemp())
straight = make_trainer(folder / "a", "RRRR", num_epochs=2, scheduler_total_steps=9)
straight.run_training()
make_trainer(folder / "b", "RRRR", scheduler_total_steps=9).run_training()
resumed = make_trainer(
    folder / "b",
    "RRRR",
    num_epochs=2,
    scheduler_total_steps=9,
    resume_from_checkpoint=True,
)
resumed.run_training()
drift = float((weights(resumed) - weights(straight)).abs().max())
if drift:
    print(f"DEFECT: weights of the resumed run differ by up to {drift:.1e}")
    sys.exit(1)
print("OK: the resumed run ends with the same weights, bit for bit")
