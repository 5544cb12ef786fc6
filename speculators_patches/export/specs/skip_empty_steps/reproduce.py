"""12 real batches, then 30 whose samples all failed (run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/train")
from test_empty_batches import make_loader, make_trainer, use_cpu, weights

use_cpu()
trainer = make_trainer(Path(tempfile.mkdtemp()), "R" * 12, scheduler_total_steps=100)
start = weights(trainer)
trainer.train_epoch(0)
before = weights(trainer)
trainer.train_loader = make_loader("E" * 30)
try:
    trainer.train_epoch(1)
except RuntimeError as error:
    print(error)
moved = float((weights(trainer) - before).norm() / (before - start).norm())
if moved:
    print(f"DEFECT: 30 empty batches move the weights {moved:.2f} x as far as 12 real ones")
    sys.exit(1)
print("OK: 30 empty batches moved no weight")
