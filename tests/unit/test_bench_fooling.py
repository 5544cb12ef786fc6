"""Ways in which a bench could be made to print a speedup that is wrong, each shut."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.arm_verdict import check_arm
from benchmarks.arms import ArmError, parse_arm, parse_endpoints
from benchmarks.blocks import BlockFolder
from benchmarks.break_even import StepCost
from benchmarks.cells import tokens_per_second
from benchmarks.client import BenchError
from benchmarks.options import parser
from benchmarks.report import compare, write_report
from benchmarks.schedule import Visit
from benchmarks.schema import ArmSpec, RequestRow, Results, ResultsError, load
from benchmarks.served import check_work
from benchmarks.summary import summarise
from recipes.vllm_server import SpecCounters
from tests.unit.test_bench_report import DRAFTER, LOOP, PLAIN, make

Change = Callable[[RequestRow], RequestRow]


def changed(results: Results, n: int, change: Change, only: Callable[[int], bool]) -> Results:
    """The results with `change` made to the rows of the arm with `n`, by the prompt's number."""
    rows = [change(r) if r.n == n and only(int(r.prompt_id[-2:])) else r for r in results.requests]
    return replace(results, requests=tuple(rows))


def drafting(summary: dict[str, Any]) -> dict[str, Any]:
    (cell,) = [c for c in summary["cells"] if c["n"]]
    return dict(cell)


def speedup(results: Results) -> float:
    return float(drafting(summarise(results))["speedup"]["value"])


def many(**how: Any) -> Results:
    """Three times the prompts of `make`, so that two bad answers are below 2 %."""
    parts = [make(seed=k, **how) for k in range(3)]
    rows = [
        replace(r, prompt_id=f"{k}-{r.prompt_id}", block=3 * r.block + k)
        for k, part in enumerate(parts) for r in part.requests
    ]  # fmt: skip
    return replace(parts[0], requests=tuple(rows))


def test_loops_that_are_few_enough_do_not_weigh() -> None:
    """2 of 120 answers run to a limit of 20,000 tokens at tenfold speed: allowed, and left out."""
    results = many()

    def loop(r: RequestRow) -> RequestRow:
        return replace(r, text=LOOP, finish_reason="length", completion_tokens=20_000,
                       seconds=20.0, drafts=4000, accepted=(4000, 4000))  # fmt: skip

    rows = [
        loop(r) if r.n and r.prompt_id in ("0-english-00", "1-english-00") else r
        for r in results.requests
    ]
    twin = [replace(r, arm="twin") for r in results.requests if r.n]
    spec = replace(results.arms[1], name="twin")
    looping = replace(results, arms=(*results.arms, spec), requests=(*rows, *twin))
    summary = summarise(looping)
    (cell,) = [c for c in summary["cells"] if c["arm"] == DRAFTER]
    (pair,) = summary["pairs"]
    assert pair["acceptance"][0]["value"] == 0  # without the two the drafters are the same
    assert pair["acceptance"][0]["prompts"] == 118
    honest = drafting(summarise(results))
    assert not cell["refused"]
    assert cell["left_out"] == 2
    assert cell["speedup"]["prompts"] == 118
    assert cell["speedup"]["value"] == pytest.approx(honest["speedup"]["value"], rel=0.03)
    assert cell["acceptance"][0]["value"] == pytest.approx(
        honest["acceptance"][0]["value"], abs=0.01
    )
    assert cell["tokens_per_s"] == pytest.approx(honest["tokens_per_s"], rel=0.05)
    assert "2 prompts are left out" in cell["speed_words"]


def test_tokens_a_second_are_of_the_answers_that_count() -> None:
    first, second, third = (
        replace(r, block=0, started_s=10.0 * k, seconds=2.0, completion_tokens=100)
        for k, r in enumerate(make().requests[:3])
    )
    rows = [first, second, third]
    assert tokens_per_second(rows) == 50  # what the bench did between two requests is not theirs
    assert tokens_per_second(rows, {third.prompt_id}) == 50
    assert tokens_per_second(rows, {r.prompt_id for r in rows}) is None
    at_once = [replace(r, concurrency=2, started_s=0.5 * k) for k, r in enumerate(rows)]
    assert tokens_per_second(at_once) == 100
    assert tokens_per_second(at_once, {third.prompt_id}) == pytest.approx(200 / 3)


def test_text_that_breaks_in_one_workload_refuses_the_arm_in_all() -> None:
    results = make()
    bad = [
        replace(r, workload="other", prompt_id=f"o{r.prompt_id}", text=LOOP if r.n else r.text)
        for r in results.requests
    ]
    summary = summarise(replace(results, requests=(*results.requests, *bad)))
    cells = [c for c in summary["cells"] if c["n"]]
    assert [c["workload"] for c in cells] == ["english", "other"]
    assert all(c["refused"] and "speedup" not in c for c in cells)


@pytest.mark.parametrize(
    "hidden",
    [
        {"text": "Paris is the capital.", "completion_tokens": 256},
        {"completion_tokens": 200, "token_ids": (*range(100), *[106] * 100)},
    ],
)
def test_special_tokens_that_no_text_shows_refuse_an_arm(hidden: dict[str, Any]) -> None:
    """A wrong stop token: the text looks fine, and the rest are tokens that the server hides."""
    results = changed(make(), 2, lambda r: replace(r, **hidden), lambda k: k < 3)
    cell = drafting(summarise(results))
    assert cell["refused"]
    assert cell["verdict"]["counts"] == {"hidden_tokens": 3}
    assert "wrong stop tokens" in cell["verdict"]["text"]


def test_another_template_on_one_side_is_no_speedup(tmp_path: Path) -> None:
    results = changed(make(), 2, lambda r: replace(r, prompt_tokens=12), lambda k: k == 7)
    summary = write_report(results, tmp_path)
    cell = drafting(summary)
    assert "speedup" not in cell
    assert cell["other_prompts"] == ["english-07"]
    assert summary["choices"][0]["speculative_config"] is None
    assert "differ in chat template" in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize("count", [3, 30])
def test_an_arm_that_answers_otherwise_is_not_recommended(count: int) -> None:
    """Without near ties: a few answers may differ, most may not."""
    base = make(speed=2.0)
    rows = [
        replace(
            r, token_ids=(1, 2, 9 if r.n and int(r.prompt_id[-2:]) < count else 3),
            gaps=None if r.n else (5.0, 5.0, 5.0),
        )
        for r in base.requests
    ]  # fmt: skip
    summary = summarise(replace(base, requests=tuple(rows)))
    cell = drafting(summary)
    assert cell["lossless"]["unexplained"] == count
    assert cell["lossless"]["changes_answers"] is (count == 30)
    chosen = summary["choices"][0]
    assert (chosen["speculative_config"] is None) is (count == 30)
    if count == 30:
        assert "NOT THE SAME ANSWERS" in cell["speed_words"]
        assert "not those without speculation" in chosen["points"][0]["reason"]


def test_answers_cut_short_at_t_07_are_not_recommended() -> None:
    def cut(r: RequestRow) -> RequestRow:
        return replace(r, text=r.text[:60], completion_tokens=12, seconds=r.seconds / 9)

    summary = summarise(changed(make(temperature=0.7), 2, cut, lambda _: True))
    cell = drafting(summary)
    assert cell["distribution"]["changes_answers"]
    assert summary["choices"][0]["speculative_config"] is None


def test_a_server_that_died_on_the_way_is_not_recommended() -> None:
    results = make(speed=2.0)
    dead = replace(results.arms[1], server_refused="it was killed (after 1 of 2 blocks)")
    summary = summarise(replace(results, arms=(results.arms[0], dead)))
    assert drafting(summary)["speedup"]["value"] > 1.5
    assert "its server failed" in summary["choices"][0]["points"][0]["reason"]


def test_an_acceptance_like_a_loops_is_suspect_in_every_line() -> None:
    def accept(r: RequestRow) -> RequestRow:
        return replace(r, n=4, drafts=100, accepted=(84, 75, 74, 73), draft_tokens=400)

    results = changed(make(speed=2.0), 2, accept, lambda _: True)
    results = replace(results, arms=(results.arms[0], replace(results.arms[1], n=4)), costs=())
    summary = summarise(results)
    assert drafting(summary)["verdict"]["status"] == "suspect"
    assert "SUSPECT" in drafting(summary)["speed_words"]
    assert "looks like a loop" in summary["choices"][0]["points"][0]["reason"]


def test_a_refused_arm_has_no_cost_and_no_better_acceptance(tmp_path: Path) -> None:
    """Both would let a reader work out its speed, or believe its acceptance."""
    results = make(bad=20)
    second = ArmSpec("other", 2, {"method": "eagle3", "model": "C"})
    rows = [replace(r, arm="other", text=make().requests[k].text) for k, r in
            enumerate(results.requests) if r.n]  # fmt: skip
    costs = tuple(StepCost(2, 1, 0.01, 0.012, 0.002, arm=arm) for arm in (DRAFTER, "other"))
    both = replace(
        results, arms=(*results.arms, second), requests=(*results.requests, *rows), costs=costs
    )
    summary = write_report(both, tmp_path)
    assert [c["arm"] for c in summary["costs"]] == ["other"]
    assert summary["pairs"] == []
    table = (tmp_path / "report.md").read_text("utf-8").partition("Acceptance by position")[2]
    assert f"{DRAFTER}, n = 2 (REFUSED: degenerate text)" in table
    loops = summarise(replace(both, requests=tuple(
        replace(r, text=LOOP) if r.n == 0 else r for r in both.requests)))  # fmt: skip
    assert loops["costs"] == []


def test_an_arm_without_a_base_says_so() -> None:
    results = make()
    moved = replace(results.arms[1], body="another")
    cell = drafting(summarise(replace(results, arms=(results.arms[0], moved))))
    assert "speedup" not in cell
    assert "no ratio" in cell["speed_words"]


def test_two_runs_with_other_prompts_under_the_same_ids_are_not_paired() -> None:
    texts = {f"english-{k:02d}": "a" for k in range(40)}
    a, b = make(prompts=texts), make(prompts={**texts, "english-03": "b"}, seed=2)
    text = compare(a, b)
    assert "1 prompts have the same id but another text" in text
    assert "of 39 answers" in text
    assert "RAW ENDPOINT" in compare(a, replace(b, endpoint="raw"))
    longer = changed(make(seed=2), 2, lambda r: replace(r, prompt_tokens=99), lambda k: k < 5)
    assert "NOT COMPARED in speed: 5 of 40" in compare(make(), longer)


def test_an_edited_result_is_refused(tmp_path: Path) -> None:
    write_report(make(), tmp_path)
    path = tmp_path / "results.json"
    row = json.loads(path.read_text("utf-8"))
    row["requests"][60]["seconds"] /= 2
    path.write_text(json.dumps(row), "utf-8")
    with pytest.raises(ResultsError, match="not as the bench wrote it"):
        load(path)


def test_short_answers_that_never_end_are_degenerate() -> None:
    def never(r: RequestRow) -> RequestRow:
        return replace(r, length="short", finish_reason="length", completion_tokens=256)

    rows = [r for r in make().requests if r.n]
    cut = [never(r) if k < 6 else replace(r, length="short") for k, r in enumerate(rows[:10])]
    verdict = check_arm([*cut, *rows[10:]])
    assert verdict.refused
    assert "6 of 10 were cut off" in verdict.text()
    assert "answers that do not end" in verdict.text()
    assert check_arm([*cut[1:], *rows[10:]]).status == "degenerate"  # 5 of 9
    assert check_arm([*cut[2:], *rows[10:]]).status == "ok"  # 4 of 8 may be long-winded
    low = [replace(r, completion_tokens=64) for r in cut]
    assert check_arm([*low, *rows[10:]]).status == "ok"  # the limit was low


@pytest.mark.parametrize(
    "field", ["temperature", "max_tokens", "seed", "chat_template", "add_generation_prompt", "n",
              "messages", "cache_salt", "stream"],
)  # fmt: skip
def test_a_request_cannot_be_changed_behind_the_report(
    field: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser("").parse_args(["--request", json.dumps({field: 1})])
    assert "is the bench's own" in capsys.readouterr().err
    assert parser("").parse_args(["--request", '{"top_k": 3}']).request == {"top_k": 3}


def test_synthetic_acceptance_is_no_arm_and_one_server_no_two_arms() -> None:
    fake = {"method": "eagle3", "model": "m", "rejection_sample_method": "synthetic"}
    with pytest.raises(ArmError, match="mean nothing"):
        parse_arm(f"fast={json.dumps(fake)}")
    with pytest.raises(ArmError, match="same address"):
        parse_endpoints(["a=http://x:1", "b:4=http://x:1/v1"])
    with pytest.raises(ArmError, match="same name"):
        parse_endpoints(["a=http://x:1", "a=http://x:2"])


NOTHING = SpecCounters()


@pytest.mark.parametrize(
    ("n", "spent", "says"),
    [
        (0, SpecCounters(drafts=9, accepted_per_pos=(5, 4), generation_tokens=108), "not draft"),
        (3, SpecCounters(drafts=9, accepted_per_pos=(5, 4), generation_tokens=108), "2 positions"),
        (0, SpecCounters(generation_tokens=400), "292 tokens besides the bench's 108"),
        (0, SpecCounters(generation_tokens=130), ""),
        (2, SpecCounters(drafts=9, accepted_per_pos=(5, 4), generation_tokens=108), ""),
        (2, None, ""),
    ],
)
def test_the_counters_tell_on_a_server(n: int, spent: SpecCounters | None, says: str) -> None:
    rows = [replace(make().requests[0], completion_tokens=100)]
    arm = ArmSpec("x", n)
    if says:
        with pytest.raises(BenchError, match=re.escape(says)):
            check_work(arm, NOTHING, spent, rows, 8)
    else:
        check_work(arm, NOTHING if spent else None, spent, rows, 8)


MACHINE: dict[str, Any] = {"versions": {"vllm": "0.32.0"}, "processor": "p", "cores": 2}


@pytest.mark.parametrize(
    ("change", "endpoint", "says"),
    [
        ({}, "m", ""),
        ({"versions": {"vllm": "0.33.0"}}, "m", "begun with vllm 0.32.0, and here is 0.33.0"),
        ({"cores": 64}, "m", "begun with cores 2"),
        ({}, "n", "a served m; now there is n"),
    ],
)
def test_blocks_of_another_machine_or_server_are_not_continued(
    tmp_path: Path, change: dict[str, Any], endpoint: str, says: str
) -> None:
    BlockFolder(tmp_path).claim("f", {}, MACHINE, {"a": "m"})
    again = BlockFolder(tmp_path)
    if not says:
        again.claim("f", {}, {**MACHINE, **change}, {"a": endpoint})
        return
    with pytest.raises(BenchError, match=says):
        again.claim("f", {}, {**MACHINE, **change}, {"a": endpoint})


def test_half_a_block_is_measured_again(tmp_path: Path) -> None:
    rows = [r for r in make().requests if r.n == 0][:4]
    asked = [(r.prompt_id, r.temperature, r.concurrency) for r in rows]
    blocks, visit = BlockFolder(tmp_path), Visit(0, 0)
    blocks.save(visit, rows)
    assert blocks.load(visit, asked) == rows
    assert blocks.load(visit, [*asked, ("p", 0.0, 1)]) is None
    file = tmp_path / "blocks" / f"{visit.name}.json"
    for spoilt in (file.read_text("utf-8")[:-40], '[{"arm": 1}]', "{}", "[1]"):
        file.write_text(spoilt, "utf-8")
        assert blocks.load(visit, asked) is None


def test_a_ratio_is_of_the_same_prompts_whatever_their_order() -> None:
    """Rows in another order, and an arm that answered a part of the prompts only."""
    results = make()
    shuffled = [results.requests[k] for k in np.random.default_rng(1).permutation(80)]
    assert speedup(replace(results, requests=tuple(shuffled))) == speedup(results)
    part = [r for r in results.requests if not r.n or int(r.prompt_id[-2:]) % 2]
    of_both = [r for r in results.requests if int(r.prompt_id[-2:]) % 2]
    assert speedup(replace(results, requests=tuple(part))) == pytest.approx(
        speedup(replace(results, requests=tuple(of_both)))
    )
    assert {r.arm for r in results.requests} == {PLAIN, DRAFTER}
