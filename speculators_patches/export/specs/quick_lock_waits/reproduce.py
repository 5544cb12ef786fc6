"""How long a reader sleeps for a file that is written after a fiftieth of a second
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/hs_connectors")
from test_lock_wait import read

slept, _ = read(Path(tempfile.mkdtemp()), written_after=0.02)
if slept > 0.05:
    print(f"DEFECT: slept {slept:.3f} s for a file that was there after 0.02")
    sys.exit(1)
print(f"OK: slept {slept:.3f} s for a file that was there after 0.02")
