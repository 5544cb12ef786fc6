"""SIGTERM while the fourth of six batches is fetched
(run where this PR's test file is)."""

import signal
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, "tests/unit/train")
from test_resumable_interrupt import Interrupting, make_trainer, use_cpu

use_cpu()
folder = Path(tempfile.mkdtemp())
trainer = make_trainer(folder, "R" * 6)
trainer.train_loader = DataLoader(Interrupting(3, signal.SIGTERM), batch_size=None)
trainer.run_training()
resumed = make_trainer(folder, "R" * 6, resume_from_checkpoint=True)
if resumed.global_step != 3:
    print(f"DEFECT: 3 batches were trained on, a resume begins at {resumed.global_step}")
    sys.exit(1)
print(f"OK: a resume goes on at batch {resumed._resume_local_step} of epoch 0")
