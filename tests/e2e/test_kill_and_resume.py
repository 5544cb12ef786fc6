"""benchmarks.kill_and_resume in small: upstream's trainer, killed once, ends the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.nightly
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill_and_resume", "--divide", "16", "--tokens", "128",
         "--samples", "12", "--epochs", "4", "--kills", "1", "--every", "5", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["bitwise_equal"]
    assert found["unequal"] == []
    (kill,) = found["kills"]
    assert 0 < kill["committed_step"] < found["steps"]
    assert found["files_compared"] >= 2
