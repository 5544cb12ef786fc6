"""One batch with a NaN among 7 (run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/train")
from test_non_finite_steps import make_trainer, use_cpu

use_cpu()
trainer = make_trainer(Path(tempfile.mkdtemp()), "RRRNRRR")
trainer.train_epoch(0)
trained = [p for p in trainer.model.parameters() if p.requires_grad]
spoilt = sum(not bool(p.isfinite().all()) for p in trained)
if spoilt:
    print(f"DEFECT: {spoilt} of {len(trained)} weight tensors hold NaN")
    sys.exit(1)
print(f"OK: all {len(trained)} weight tensors are finite")
