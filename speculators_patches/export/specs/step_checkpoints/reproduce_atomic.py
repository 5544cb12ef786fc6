"""The second save of an epoch dies before its last file
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, "tests/unit/train")
from test_atomic_checkpoint import make_trainer, use_cpu

use_cpu()
folder = Path(tempfile.mkdtemp())
trainer = make_trainer(folder, "RR")
trainer.train_epoch(0)
trainer.maybe_save_checkpoint(0, local_step=1)
before = torch.load(trainer.checkpointer.optimizer_path(0))
trainer.train_epoch(0)


def killed(*_):
    raise KeyboardInterrupt


trainer._save_training_state = killed
try:
    trainer.maybe_save_checkpoint(0, local_step=2)
except KeyboardInterrupt:
    pass
resumed = make_trainer(folder, "RR", resume_from_checkpoint=True)
after = torch.load(resumed.checkpointer.optimizer_path(0))
step = resumed._resume_local_step
if str(after) != str(before):
    print(f"DEFECT: the checkpoint says batch {step} and holds moments of a later one")
    sys.exit(1)
print(f"OK: the checkpoint of batch {step} is as it was")
