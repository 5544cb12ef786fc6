"""How often the forward pass copies a number from the host
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/models")
from test_accumulators import forward, make_drafter

_, _, copies = forward(make_drafter(Path(tempfile.mkdtemp())))
if copies:
    print(f"DEFECT: {copies} numbers copied from the host in one forward pass")
    sys.exit(1)
print("OK: no number copied from the host in one forward pass")
