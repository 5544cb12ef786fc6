"""A run with --save-best is killed before its first validation
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/train")
from test_checkpoint_steps import make_trainer, use_cpu

use_cpu()
folder = Path(tempfile.mkdtemp())
try:
    trainer = make_trainer(folder, "R" * 6, save_best=True, checkpoint_steps=2)
except TypeError:  # no such setting: the closest there is
    trainer = make_trainer(folder, "R" * 6, save_best=True, checkpoint_freq=0.33)
trainer.train_epoch(0)
resumed = make_trainer(folder, "R" * 6, save_best=True, resume_from_checkpoint=True)
if resumed.global_step == 0:
    print("DEFECT: 6 batches were trained on and no checkpoint is there")
    sys.exit(1)
print(f"OK: it goes on from step {resumed.global_step} of 6")
