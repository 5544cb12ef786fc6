"""What benchmarks/README.md says of serving on an H200, against the file it was read from."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.break_even import StepCost, acceptance_needed
from benchmarks.serving_costs import Engine, costs, disturbed

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ORDER = (
    Engine(0), Engine(0, kv="auto"), *(Engine(n) for n in range(1, 7)), Engine(4, kv="auto"),
    *(Engine(n, "probabilistic") for n in (2, 4, 6)),
)  # fmt: skip


@pytest.fixture(scope="module")
def engines() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        (BENCHMARKS / "results" / "serving_steps_h200.json").read_text()
    )["engines"]
    return found


def rows(engines: list[dict[str, Any]], engine: Engine) -> dict[int, dict[str, Any]]:
    (found,) = [one for one in engines if Engine(**one["engine"]) == engine]
    return {row["concurrency"]: row for row in found["rows"]}


def table(engines: list[dict[str, Any]]) -> list[str]:
    """The table's lines: a step / the device's own work in it (acceptance needed by the latter)."""
    needed = {
        (cost["n"], cost["arm"], cost["concurrency"]): cost["needed"]
        for cost in costs(engines, 0.7, device=True)
    }
    lines = []
    for engine in ORDER:
        cells = []
        for requests, row in rows(engines, engine).items():
            cell = f"{1000 * row['step_s']:.1f} / {1000 * row['busy_s']:.1f}"
            if engine.n:
                worth = needed[engine.n, f"{engine.drafting}, {engine.kv} KV", requests]
                cell += f" ({worth:.2f})".replace("(0.", "(.")
            cells.append(cell)
        cache = ", bf16 cache" if engine.kv == "auto" else ""
        name = f"n = {engine.n}, {engine.drafting}" if engine.n else "no speculation"
        lines.append(f"| {name}{cache} | {' | '.join(cells)} |")
    return lines


def test_the_table_is_the_file(engines: list[dict[str, Any]]) -> None:
    assert len(engines) == len(ORDER)
    said = (BENCHMARKS / "README.md").read_text().splitlines()
    missing = [line for line in table(engines) if line not in said]
    assert not missing, "\n".join(missing)


def test_the_devices_own_work_grows_as_it_should(engines: list[dict[str, Any]]) -> None:
    work = [
        {**one, "rows": [{**row, "step_s": row["busy_s"], "draft_s": 0} for row in one["rows"]]}
        for one in engines
    ]
    assert sum(len(one["rows"]) for one in work) == 60
    assert disturbed(work) == {(Engine(2), 4), (Engine(2, "probabilistic"), 4)}
    assert len(disturbed(engines)) == 27


def test_with_drafts_the_device_is_idle(engines: list[dict[str, Any]]) -> None:
    idle: dict[bool, list[float]] = {True: [], False: []}
    for one in engines:
        for row in one["rows"]:
            idle[one["engine"]["n"] > 0].append(1000 * (row["step_s"] - row["busy_s"]))
    assert max(idle[False]) == pytest.approx(0.16)
    assert [round(of(idle[True]), 1) for of in (min, median, max)] == [0.2, 2.6, 6.9]
    greedy, drawn = rows(engines, Engine(6))[2], rows(engines, Engine(6, "probabilistic"))[2]
    found = [round(1000 * (row["step_s"] - row["busy_s"]), 1) for row in (greedy, drawn)]
    assert found == [6.8, 0.3]
    assert greedy["launches"] < drawn["launches"]


def test_what_the_steps_themselves_need(engines: list[dict[str, Any]]) -> None:
    plain = rows(engines, Engine(0))[1]["step_s"]
    for n, needed in ((1, 0.83), (4, 0.63)):
        whole = StepCost(n, 1, plain, rows(engines, Engine(n))[1]["step_s"], 0.0)
        assert acceptance_needed(whole) == pytest.approx(needed, abs=0.005)


def test_device_costs_stand_in_the_file(engines: list[dict[str, Any]]) -> None:
    found = json.loads((BENCHMARKS / "results" / "serving_steps_h200.json").read_text())
    assert found["device_costs"] == costs(engines, 0.7, device=True)
    assert len(found["device_costs"]) == 50


def test_most_of_what_one_draft_adds_is_attention(engines: list[dict[str, Any]]) -> None:
    plain, one = rows(engines, Engine(0))[1], rows(engines, Engine(1))[1]
    added = one["busy_s"] - plain["busy_s"]
    attention = one["kinds_s"]["attention"] - plain["kinds_s"]["attention"]
    assert (round(1000 * added, 1), round(1000 * attention, 1)) == (3.2, 2.4)
    # It comes with the first draft; the next five add next to nothing.
    six = rows(engines, Engine(6))[1]["kinds_s"]["attention"]
    assert six < 1.05 * one["kinds_s"]["attention"]
    bf16 = rows(engines, Engine(4, kv="auto"))[1]["kinds_s"]["attention"]
    assert bf16 == pytest.approx(rows(engines, Engine(4))[1]["kinds_s"]["attention"], rel=0.05)
