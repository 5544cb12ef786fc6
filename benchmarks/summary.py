"""From raw rows to what the report prints: one cell per arm, n, workload, temperature, concurrency.

Every number of a report comes from here, so that the pages and results.json cannot disagree. A cell
whose arm is refused keeps its counts and its verdict but has no tok/s ratio: there is nothing else
for a renderer to print.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np

from benchmarks import losslessness, same_distribution, stats, wording
from benchmarks.arm_verdict import ArmVerdict, check_arm
from benchmarks.choose import Measured, as_flag, choose_all, speculative_config
from benchmarks.schema import RequestRow, Results, ResultsError
from benchmarks.stats import Interval
from benchmarks.text_checks import COMPRESSION_NORMS

NORM_OF = {"english": "english", "chat": "english", "podcast": "english", "image": "english",
           "chinese": "chinese", "code": "code"}  # fmt: skip


@dataclass(frozen=True)
class CellKey:
    """What makes rows comparable; `base` is the same cell without speculation."""

    arm: str
    n: int
    workload: str
    temperature: float
    concurrency: int

    @property
    def place(self) -> tuple[str, float, int]:
        return self.workload, self.temperature, self.concurrency

    @property
    def label(self) -> str:
        return f"{self.arm}, n = {self.n}" if self.n else self.arm


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
        cells[CellKey(r.arm, r.n, r.workload, r.temperature, r.concurrency)].append(r)
    like = {(a.name, a.n): a.like for a in results.arms}
    bases = {
        (key.place, like[key.arm, 0]): (key, found) for key, found in cells.items() if key.n == 0
    }
    verdicts = {key: _verdict(results, found) for key, found in cells.items()}
    # An arm is one server: text that broke on one workload spoils its speed on all of them.
    refused = {(k.arm, k.n) for k, v in verdicts.items() if v.refused}
    out, measured = [], []
    for key, found in cells.items():
        base = bases.get((key.place, like[key.arm, key.n]))
        cell = _cell(key, found, verdicts[key])
        cell["refused"] = (key.arm, key.n) in refused
        if cell["refused"]:
            # A reader divides what is printed, so a refused arm has no speed of any kind.
            cell |= dict.fromkeys(("tokens_per_s", "tokens_per_s_per_request", "itl_s"))
        if base is not None and key.n > 0:
            base_refused = (base[0].arm, 0) in refused
            cell |= _against(key, found, base[1], cell["refused"] or base_refused)
            if base_refused and not cell["refused"]:
                cell["speed_words"] = f"{key.label}: no speedup, its base {base[0].arm} is refused."
        if cell.get("speedup") is not None or (key.n > 0 and cell["refused"]):
            seen = cell.get("speedup")
            interval = Interval.from_json(seen) if seen else Interval(0, 0, 0, 0, len(found))
            measured.append(
                (key, Measured(key.arm, key.n, key.workload, key.concurrency, interval,
                               cell["refused"]))
            )  # fmt: skip
        out.append(cell)
    return {
        "endpoint": results.endpoint,
        "cells": out,
        "refused": [{"arm": arm, "n": n} for arm, n in sorted(refused)],
        "server_refused": [
            {"arm": a.name, "n": a.n, "why": a.server_refused}
            for a in results.arms if a.server_refused
        ],
        "pairs": pairs(cells),
        "choices": _choices(results, measured),
        "costs": [c.to_json() for c in results.costs],
    }  # fmt: skip


def _synthetic(results: Results, row: RequestRow) -> bool:
    return any(a.synthetic and (a.name, a.n) == (row.arm, row.n) for a in results.arms)


def _verdict(results: Results, rows: Sequence[RequestRow]) -> ArmVerdict:
    drafts = sum(r.drafts for r in rows)
    norm = COMPRESSION_NORMS.get(NORM_OF.get(rows[0].workload, ""))
    return check_arm(
        rows,
        [a / drafts for a in _accepted(rows)] if drafts else None,
        prompts=results.prompts,
        norms={r.prompt_id: norm for r in rows} if norm is not None else None,
        raw=results.raw,
    )


def _accepted(rows: Sequence[RequestRow]) -> list[int]:
    positions = max((len(r.accepted) for r in rows), default=0)
    return [sum(r.accepted[k] if k < len(r.accepted) else 0 for r in rows)
            for k in range(positions)]  # fmt: skip


@dataclass(frozen=True)
class _ByPrompt:
    """Sums over the repeats of each prompt, in the order of the ids."""

    ids: list[str]
    tokens: list[int]
    seconds: list[float]
    drafts: list[int]
    accepted: list[list[int]]

    @classmethod
    def of(cls, rows: Sequence[RequestRow], ids: Iterable[str] | None = None) -> _ByPrompt:
        groups: dict[str, list[RequestRow]] = defaultdict(list)
        for r in rows:
            groups[r.prompt_id].append(r)
        chosen = sorted(groups if ids is None else ids)
        positions = max((len(r.accepted) for r in rows), default=0)
        return cls(
            ids=chosen,
            tokens=[sum(r.completion_tokens for r in groups[i]) for i in chosen],
            seconds=[sum(r.seconds for r in groups[i]) for i in chosen],
            drafts=[sum(r.drafts for r in groups[i]) for i in chosen],
            accepted=[
                [sum(r.accepted[k] for r in groups[i] if k < len(r.accepted))
                 for k in range(positions)]
                for i in chosen
            ],
        )  # fmt: skip


def _cell(key: CellKey, rows: Sequence[RequestRow], verdict: ArmVerdict) -> dict[str, Any]:
    by = _ByPrompt.of(rows)
    tokens = sum(r.completion_tokens for r in rows)
    cell: dict[str, Any] = {
        "arm": key.arm, "n": key.n, "workload": key.workload, "temperature": key.temperature,
        "concurrency": key.concurrency, "label": key.label,
        "prompts": len(by.ids), "requests": len(rows), "tokens": tokens,
        "verdict": verdict.to_json(),
        "tokens_per_s": tokens / _wall(rows),
        "tokens_per_s_per_request": median(r.completion_tokens / r.seconds for r in rows),
        "ttft_s": _median(r.ttft_s for r in rows),
        "itl_s": _median(r.itl_s for r in rows),
    }  # fmt: skip
    # Per-prompt counts only make sense where each request's own were kept.
    if by.accepted and by.accepted[0] and sum(by.drafts) > 0:
        drafted = [k for k, d in enumerate(by.drafts) if d > 0]
        drafts = [by.drafts[k] for k in drafted]
        accepted = [by.accepted[k] for k in drafted]
        if len(drafts) >= 2:
            cell["acceptance"] = [i.to_json() for i in stats.acceptance(drafts, accepted)]
            cell["conditional"] = [
                _no_nan(i) for i in stats.conditional_acceptance(drafts, accepted)
            ]
            cell["tokens_per_step"] = stats.accepted_length(drafts, accepted).to_json()
    return cell


def _against(
    key: CellKey, rows: Sequence[RequestRow], base_rows: Sequence[RequestRow], refused: bool
) -> dict[str, Any]:
    """The comparison with no speculation, on the prompts that both answered."""
    common = sorted({r.prompt_id for r in rows} & {r.prompt_id for r in base_rows})
    if len(common) < 2:
        return {"speed_words": f"{key.label}: no prompt in common with no speculation."}
    more: dict[str, Any] = {}
    if refused:
        more["speed_words"] = f"{key.label}: REFUSED, degenerate answers; no speedup is reported."
    else:
        mine, base = _ByPrompt.of(rows, common), _ByPrompt.of(base_rows, common)
        seen = stats.rate_ratio(
            np.maximum(mine.tokens, 1), mine.seconds, np.maximum(base.tokens, 1), base.seconds
        )
        more["speedup"] = seen.to_json()
        more["speed_words"] = wording.describe_ratio(key.label, seen)
    first = {r.prompt_id: r for r in reversed(rows)}
    plain = {r.prompt_id: r for r in reversed(base_rows)}
    if key.temperature == 0:
        more["lossless"] = _lossless(common, first, plain)
    elif len(common) >= stats.FEWEST_PROMPTS:
        more["distribution"] = same_distribution.compare_distributions(
            [first[i].text for i in common], [plain[i].text for i in common],
            [first[i].completion_tokens for i in common],
            [plain[i].completion_tokens for i in common],
        ).to_json()  # fmt: skip
    return more


def _lossless(
    common: Sequence[str], mine: dict[str, RequestRow], base: dict[str, RequestRow]
) -> dict[str, Any]:
    if all(r.token_ids is not None for i in common for r in (mine[i], base[i])):
        return losslessness.compare_arm(
            {i: base[i].token_ids or () for i in common},
            {i: mine[i].token_ids or () for i in common},
            {i: base[i].gaps or () for i in common},
        ).to_json()
    return losslessness.compare_arm(
        {i: base[i].text for i in common}, {i: mine[i].text for i in common}
    ).to_json()


def pairs(cells: Mapping[CellKey, Sequence[RequestRow]]) -> list[dict[str, Any]]:
    """Drafters against each other on the same prompts, each at the greatest n that both have.

    A pair may differ in body or flags: what is compared is acceptance, by prompt.
    """
    found = []
    names = list(dict.fromkeys(k.arm for k in cells if k.n > 0))
    for a, b in combinations(names, 2):
        for place in dict.fromkeys(k.place for k in cells):
            depths = [{k.n for k in cells if k.arm == arm and k.place == place and k.n > 0}
                      for arm in (a, b)]  # fmt: skip
            n = max(depths[0] & depths[1], default=0)
            if n:
                found += _pair(CellKey(a, n, *place), CellKey(b, n, *place), cells)
    return found


def _pair(
    a: CellKey, b: CellKey, cells: Mapping[CellKey, Sequence[RequestRow]]
) -> list[dict[str, Any]]:
    drafted = [{r.prompt_id for r in cells[k] if r.drafts > 0} for k in (a, b)]
    common = sorted(drafted[0] & drafted[1])
    if len(common) < 2:
        return []
    x, y = (_ByPrompt.of([r for r in cells[k] if r.prompt_id in common], common) for k in (a, b))
    differences = stats.acceptance_difference(y.drafts, y.accepted, x.drafts, x.accepted)
    length = stats.length_difference(y.drafts, y.accepted, x.drafts, x.accepted)
    where = f"{b.label} minus {a.label}"
    return [
        {
            "arm": b.arm, "against": a.arm, "n": a.n, "workload": a.workload,
            "temperature": a.temperature, "concurrency": a.concurrency,
            "acceptance": [d.to_json() for d in differences], "tokens_per_step": length.to_json(),
            "words": [wording.describe_difference(f"{where}, position {k}", d)
                      for k, d in enumerate(differences)],
        }
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


def _wall(rows: Sequence[RequestRow]) -> float:
    """Seconds in which the rows were answered: per block from its first start to its last end."""
    blocks: dict[int, list[RequestRow]] = defaultdict(list)
    for r in rows:
        blocks[r.block].append(r)
    return sum(
        max(r.started_s + r.seconds for r in b) - min(r.started_s for r in b)
        for b in blocks.values()
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return median(known) if known else None


def _no_nan(seen: Interval) -> dict[str, Any] | None:
    return None if seen.value != seen.value else seen.to_json()
