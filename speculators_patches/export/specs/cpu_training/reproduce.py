"""One epoch of four batches without an accelerator (run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/train")
from test_cpu_training import make_trainer

try:
    trainer = make_trainer(Path(tempfile.mkdtemp()))
    trainer.run_training()
except Exception as error:
    print(f"DEFECT: {type(error).__name__}: {str(error).splitlines()[0]}")
    sys.exit(1)
print(f"OK: trained {trainer.global_step} steps")
