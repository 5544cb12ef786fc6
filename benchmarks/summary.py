"""From raw rows to what the report prints: one cell per arm, n, workload, temperature, concurrency.

Every number of a report comes from here, so that the pages and results.json cannot disagree. A cell
whose arm is refused keeps its counts and its verdict but has no tok/s ratio: there is nothing else
for a renderer to print. Numbers of an arm that passed rest on the answers that passed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks import stats
from benchmarks.against_base import against
from benchmarks.arm_verdict import ArmVerdict, check_arm
from benchmarks.cells import ByPrompt, CellKey, accepted_by_position, tokens_per_second
from benchmarks.choose import Measured, as_flag, choose_all, speculative_config
from benchmarks.drafter_pairs import pairs
from benchmarks.schema import RequestRow, Results, ResultsError
from benchmarks.stats import Interval
from benchmarks.text_checks import COMPRESSION_NORMS

NORM_OF = {"english": "english", "chat": "english", "podcast": "english", "image": "english",
           "chinese": "chinese", "code": "code"}  # fmt: skip


def summarise(results: Results) -> dict[str, Any]:
    """Everything the report shows, as plain JSON data.

    Raises:
        ResultsError: there are no requests.
    """
    rows = [r for r in results.requests if not _synthetic(results, r)]
    if not rows:
        raise ResultsError("These results hold no requests; the bench measured nothing.")
    cells: dict[CellKey, list[RequestRow]] = defaultdict(list)
    for r in rows:
        cells[CellKey.of(r)].append(r)
    verdicts = {key: _verdict(results, found) for key, found in cells.items()}
    # An arm is one server: text that broke on one workload spoils its speed on all of them.
    refused = {(k.arm, k.n) for k, v in verdicts.items() if v.refused}
    like = {(a.name, a.n): a.like for a in results.arms}
    bases = {(k.place, like[k.arm, 0]): k for k in cells if k.n == 0}
    failed = {(a.name, a.n): a.server_refused for a in results.arms if a.server_refused}
    out: list[dict[str, Any]] = []
    measured: list[tuple[CellKey, Measured]] = []
    for key, found in cells.items():
        arm = key.arm, key.n
        cell = _cell(key, found, verdicts[key], arm in refused)
        if key.n > 0:
            base = bases.get((key.place, like[arm]))
            cell |= against(
                key, found, base, cells.get(base, ()) if base else (), cell["refused"],
                base is not None and (base.arm, 0) in refused,
                {*verdicts[key].bad, *(verdicts[base].bad if base else ())},
            )  # fmt: skip
            cell["barred"] = _barred(cell, verdicts[key], failed.get(arm))
            if verdicts[key].status == "suspect" and "speed_words" in cell:
                cell["speed_words"] += " SUSPECT: its acceptance looks like that of a loop."
            measured += _measured(key, cell, len(found))
        out.append(cell)
    usable = {k: [r for r in found if r.prompt_id not in verdicts[k].bad]
              for k, found in cells.items()}  # fmt: skip
    return {
        "endpoint": results.endpoint,
        "cells": out,
        "refused": [{"arm": arm, "n": n} for arm, n in sorted(refused)],
        "server_refused": [
            {"arm": a.name, "n": a.n, "why": a.server_refused}
            for a in results.arms if a.server_refused
        ],
        "pairs": pairs(usable, refused),
        "choices": _choices(results, measured),
        "costs": _costs(results, refused),
    }  # fmt: skip


def _synthetic(results: Results, row: RequestRow) -> bool:
    return any(a.synthetic and (a.name, a.n) == (row.arm, row.n) for a in results.arms)


def _verdict(results: Results, rows: Sequence[RequestRow]) -> ArmVerdict:
    drafts = sum(r.drafts for r in rows)
    norm = COMPRESSION_NORMS.get(NORM_OF.get(rows[0].workload, ""))
    return check_arm(
        rows,
        [a / drafts for a in accepted_by_position(rows)] if drafts else None,
        prompts=results.prompts,
        norms={r.prompt_id: norm for r in rows} if norm is not None else None,
        raw=results.raw,
    )


def _cell(
    key: CellKey, rows: Sequence[RequestRow], verdict: ArmVerdict, refused: bool
) -> dict[str, Any]:
    # A refused arm shows its inflated acceptance, marked; one that passed shows none of it.
    bad = () if refused else verdict.bad
    kept = [r for r in rows if r.prompt_id not in bad]
    cell: dict[str, Any] = {
        "arm": key.arm, "n": key.n, "workload": key.workload, "temperature": key.temperature,
        "concurrency": key.concurrency, "label": key.label, "refused": refused,
        "prompts": len({r.prompt_id for r in rows}), "requests": len(rows),
        "left_out": len(rows) - len(kept), "tokens": sum(r.completion_tokens for r in rows),
        "verdict": verdict.to_json(),
        "tokens_per_s": tokens_per_second(rows, bad),
        "tokens_per_s_per_request": _median(r.completion_tokens / r.seconds for r in kept),
        "ttft_s": _median(r.ttft_s for r in kept),
        "itl_s": _median(r.itl_s for r in kept),
    }  # fmt: skip
    if refused:
        # A reader divides what is printed, so a refused arm has no speed of any kind.
        cell |= dict.fromkeys(("tokens_per_s", "tokens_per_s_per_request", "itl_s"))
    by = ByPrompt.of(kept)
    # Per-prompt counts only make sense where each request's own were kept.
    drafted = [k for k, d in enumerate(by.drafts) if d > 0]
    if len(drafted) >= 2 and by.accepted[0]:
        drafts = [by.drafts[k] for k in drafted]
        accepted = [by.accepted[k] for k in drafted]
        cell["acceptance"] = [i.to_json() for i in stats.acceptance(drafts, accepted)]
        cell["conditional"] = [_no_nan(i) for i in stats.conditional_acceptance(drafts, accepted)]
        cell["tokens_per_step"] = stats.accepted_length(drafts, accepted).to_json()
    return cell


def _barred(cell: dict[str, Any], verdict: ArmVerdict, failed: str | None) -> str:
    """Why nobody should serve with this arm whatever its speed, "" if nothing is known."""
    answers = cell.get("lossless") or cell.get("distribution") or {}
    if cell["refused"]:
        return "degenerate text"
    if cell.get("other_prompts"):
        return "it was given other prompts"
    if answers.get("changes_answers"):
        return "its answers are not those without speculation"
    if failed:
        return "its server failed"
    return "its acceptance looks like a loop" if verdict.status == "suspect" else ""


def _measured(
    key: CellKey, cell: dict[str, Any], prompts: int
) -> Iterable[tuple[CellKey, Measured]]:
    seen, barred = cell.get("speedup"), cell["barred"]
    if seen is not None or barred:
        interval = Interval.from_json(seen) if seen else Interval(0, 0, 0, 0, prompts)
        yield key, Measured(key.arm, key.n, key.workload, key.concurrency, interval, barred)


def _costs(results: Results, refused: Collection[tuple[str, int]]) -> list[dict[str, Any]]:
    """Of arms that are not refused, nor their base: acceptance over a step's cost is a speed."""
    like = {(a.name, a.n): a.like for a in results.arms}
    spoilt = {like[arm] for arm in refused if arm[1] == 0}
    return [
        c.to_json() for c in results.costs
        if (c.arm, c.n) not in refused and like.get((c.arm, c.n)) not in spoilt
    ]  # fmt: skip


def _choices(
    results: Results, measured: Sequence[tuple[CellKey, Measured]]
) -> list[dict[str, Any]]:
    configs = {a.name: a.speculative_config or {} for a in reversed(results.arms) if a.n > 0}
    found = []
    for temperature in sorted({k.temperature for k, _ in measured}):
        chosen = choose_all([m for k, m in measured if k.temperature == temperature])
        for arm, workload in dict.fromkeys((c.arm, c.workload) for c in chosen):
            points = [c for c in chosen if (c.arm, c.workload) == (arm, workload)]
            config = speculative_config(configs.get(arm, {}), points)
            found.append(
                {
                    "arm": arm, "workload": workload, "temperature": temperature,
                    "points": [c.to_json() for c in points], "flag": as_flag(config),
                    "speculative_config": config,
                }
            )  # fmt: skip
    return found


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None


def _no_nan(seen: Interval) -> dict[str, Any] | None:
    return None if seen.value != seen.value else seen.to_json()
