"""A test that leaves patches in force fails, and the next one starts without them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
from speculators_patches import apply, overlay

def test_leaves_a_patch():
    apply(only=["save_best_scope"])
    assert overlay.in_force() == ("save_best_scope",)

def test_next():
    assert overlay.in_force() == ()
"""


def test_what_one_test_leaves_reaches_no_other(tmp_path: Path) -> None:
    (tmp_path / "test_two.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider",
         "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.search(r"^2 passed.*, 1 error ", done.stdout, re.MULTILINE), done.stdout
    assert "left patches in force in its own process: save_best_scope" in done.stdout
