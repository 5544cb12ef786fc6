"""Another run's folder lies under --save-path."""

import sys
import tempfile
from pathlib import Path

from speculators.train.checkpointer import SingleGPUCheckpointer

path = Path(tempfile.mkdtemp())
(path / "notes").mkdir()
(path / "notes" / "results.txt").write_text("three weeks of work")
checkpointer = SingleGPUCheckpointer(path)
(path / "0").mkdir()
checkpointer.cleanup_keep_only_best(0)
if not (path / "notes" / "results.txt").exists():
    print("DEFECT: --save-best deleted notes/results.txt")
    sys.exit(1)
print("OK: notes/results.txt is still there")
