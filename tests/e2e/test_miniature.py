"""The whole recipe on the miniature, as `make miniature` runs it: real vLLM, real training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("bodies", "regenerate", "prepare", "train", "calibrate", "bench", "serve")


def run_all(folder: Path, seed: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "recipes.gemma4_abliterated", "all", "--preset", "miniature",
            "--run-dir", str(folder), "--set", f"seed={seed}",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=3600,
    )  # fmt: skip


@pytest.mark.e2e
@pytest.mark.nightly
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_refused_prompts_decay_and_recover_and_a_second_run_is_a_no_op(
    tmp_path: Path, seed: int
) -> None:
    done = run_all(tmp_path, seed)
    assert done.returncode == 0, done.stderr[-4000:]
    for stage in STAGES:
        assert json.loads((tmp_path / stage / "manifest.json").read_text())["stage"] == stage
    summary = json.loads((tmp_path / "bench" / "miniature.json").read_text())
    assert (tmp_path / "bench" / "miniature.png").stat().st_size > 10_000
    assert summary["bodies"]["vanilla"]["refused"]["refused"] > 45
    assert summary["bodies"]["abliterated"]["refused"]["refused"] == 0
    cold = [v for v in summary["verdict"] if v["temperature"] == 0 and v["kind"] == "refused"]
    assert [v["decay"] for v in cold] == [True]
    assert [v["recovery"] for v in cold] == [True]
    # Speculation must not change what is said; near ties may fall the other way in batches.
    for tally in summary["same_text"].values():
        assert tally["equal"] >= 0.9 * tally["prompts"]

    commands = (tmp_path / "commands.jsonl").read_text()
    again = run_all(tmp_path, seed)
    assert again.returncode == 0
    assert again.stderr.count("already done from the same inputs") >= len(STAGES)
    assert (tmp_path / "commands.jsonl").read_text() == commands
