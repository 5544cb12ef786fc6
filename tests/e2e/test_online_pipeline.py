"""Extraction and training side by side, in small: the real server, loader and step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.e2e
@pytest.mark.nightly
def test_every_arm_trains_or_extracts_and_loses_nothing(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.online_pipeline", "--divide", "8", "--layers", "8",
            "--no-fp8", "--tokens", "256", "--rows", "60", "--length", "60", "--workers", "1",
            "--share", "0.4", "--seconds", "8", "--out", str(out),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = json.loads(out.read_text())["shares"]
    assert set(found["arms"]) == {"training", "extraction", "in turn", "side by side"}
    assert all(arm["steps"] > 0 and arm["tokens_s"] > 0 for arm in found["arms"].values())
    assert all(arm["lost"] == 0 for arm in found["arms"].values())
    assert found["arms"]["in turn"]["waiting_share"] > 0
