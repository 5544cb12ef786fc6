"""What stops the first engine stops them all: no other is started, and the reason is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def measure(out: Path, *engines: str) -> subprocess.CompletedProcess[str]:
    """With a setting that vLLM refuses."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_steps", "--divide", "11", "--layers", "8",
         "--no-fp8", "--concurrency", "0", "--out", str(out),
         *(word for engine in engines for word in ("--engine", engine))],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.nightly
def test_a_setting_that_no_engine_takes_costs_one_start(tmp_path: Path) -> None:
    out = tmp_path / "steps.json"
    done = measure(out, "0", "2", "4")
    assert done.returncode == 1, done.stderr[-3000:]
    record = json.loads(out.read_text())
    (engine,) = record["engines"]
    assert engine["name"] == "n = 0, fp8 KV"
    assert "max_num_seqs" in "\n".join(engine["error"])
    assert "max_num_seqs" in done.stderr
    assert done.stdout.splitlines()[-1] == f"written: {out}"

    # Where an earlier run has an engine that was well, one that fails is no reason to stop.
    well = {"engine": {**engine["engine"], "n": 6}, "name": "n = 6, greedy, fp8 KV", "rows": []}
    out.write_text(json.dumps(record | {"engines": [well]}))
    assert measure(out, "0", "2", "6").returncode == 1
    engines = json.loads(out.read_text())["engines"]
    assert [one["engine"]["n"] for one in engines] == [6, 0, 2]
    assert ["error" in one for one in engines] == [False, True, True]
