"""One of three rows comes with a NaN
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/unit/cli")
from test_check_before_move import Server, extract

folder = Path(tempfile.mkdtemp())
(folder / "vllm").mkdir()
names = extract(folder, Server(folder / "vllm"))
if "hs_1.safetensors" in names:
    print("DEFECT: hs_1.safetensors holds a NaN and counts as done")
    sys.exit(1)
print(f"OK: in place are {', '.join(names)}")
