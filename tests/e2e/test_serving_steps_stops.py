"""What stops the first engine stops them all: no other is started, and the reason is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_setting_that_no_engine_takes_costs_one_start(tmp_path: Path) -> None:
    out = tmp_path / "steps.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_steps", "--divide", "11", "--layers", "8",
         "--no-fp8", "--concurrency", "0", "--engine", "0", "--engine", "2", "--engine", "4",
         "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-3000:]
    (engine,) = json.loads(out.read_text())["engines"]
    assert engine["name"] == "n = 0, fp8 KV"
    assert "max_num_seqs" in "\n".join(engine["error"])
    assert "max_num_seqs" in done.stderr
    assert done.stdout.splitlines()[-1] == f"written: {out}"
