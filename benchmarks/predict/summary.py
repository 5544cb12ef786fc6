"""Rows of one drafter -> what is expected of it, with intervals over prompts; the bench's error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.break_even import StepCost
from benchmarks.predict.evaluate import BLOCK, GREEDY, MEANS, PROBABILISTIC, Row
from benchmarks.schema import ArmSpec, RequestRow, Results

ALL = "all"


def by_prompt(rows: Sequence[Row], way: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected drafts (prompts,) and accepted (prompts, n), repeats of a prompt added up.

    Neither is above the one before it, which rounding may lift one by 1e-16.
    """
    drafts: dict[str, float] = {}
    accepted: dict[str, np.ndarray] = {}
    for row in rows:
        counts = row.counts[way][n - 1]
        drafts[row.prompt_id] = drafts.get(row.prompt_id, 0.0) + counts.drafts
        accepted[row.prompt_id] = accepted.get(row.prompt_id, np.zeros(n)) + counts.accepted
    order = list(drafts)
    made = np.array([drafts[k] for k in order])
    taken = np.array([accepted[k] for k in order])
    return made, np.minimum.accumulate(np.minimum(taken, made[:, None]), axis=1)


def kept_a_step(rows: Sequence[Row], way: str, n: int) -> float:
    """Tokens of the answers behind their first one, a verify step.

    Below tokens a step as vLLM counts them: what a step accepts behind an answer's end is drafted
    and counted, and thrown away. Of an answer of 27 tokens that is some 8 %, of 200 one.
    """
    steps = sum(row.counts[way][n - 1].drafts for row in rows)
    return float(sum(row.tokens - 1 for row in rows) / steps)


def summarise(rows: Sequence[Row], depth: int, seed: int = 0) -> list[dict[str, Any]]:
    """One cell per temperature and workload (and "all"): lengths, acceptance, measures.

    `tokens_a_step` and `acceptance` are over verify steps, as a bench counts; `measures` over every
    start alike.
    """
    cells = []
    for temperature in sorted({r.temperature for r in rows}):
        here = [r for r in rows if r.temperature == temperature and r.starts > 0]
        kinds = sorted({r.workload for r in here})
        for kind in [ALL, *kinds] if len(kinds) > 1 else kinds:
            chosen = [r for r in here if kind in (ALL, r.workload)]
            if chosen:
                cells.append(_cell(chosen, temperature, kind, depth, seed))
    return cells


def _cell(
    rows: Sequence[Row], temperature: float, kind: str, depth: int, seed: int
) -> dict[str, Any]:
    prompts = len({r.prompt_id for r in rows})
    starts = sum(r.starts for r in rows)
    cell: dict[str, Any] = {
        "temperature": temperature, "workload": kind, "prompts": prompts, "starts": starts,
        "tokens_a_step": {}, "kept_a_step": {}, "acceptance": {}, "probabilistic_minus_greedy": {},
    }  # fmt: skip
    for way in rows[0].counts:
        cell["tokens_a_step"][way] = {}
        for n in range(1, depth + 1):
            drafts, accepted = by_prompt(rows, way, n)
            cell["tokens_a_step"][way][n] = _interval(drafts, accepted, seed)
        cell["kept_a_step"][way] = {n: kept_a_step(rows, way, n) for n in range(1, depth + 1)}
        cell["acceptance"][way] = (accepted.sum(0) / drafts.sum()).tolist()
    for n in range(1, depth + 1):
        if prompts >= 2:
            difference = stats.length_difference(
                *by_prompt(rows, PROBABILISTIC, n), *by_prompt(rows, GREEDY, n), seed=seed
            )
            cell["probabilistic_minus_greedy"][n] = difference.to_json()
    totals = {name: np.sum([r.sums[name] for r in rows], axis=0) for name in MEANS}
    # At temperature 0 both are one-hot: KL is 0 or infinite there, and says nothing.
    infinite = np.sum([r.unsayable_kl for r in rows], axis=0)
    means = {name: (totals[name] / starts).tolist() for name in MEANS if name != "kl"}
    means["kl"] = [
        float(t / (starts - i)) if starts > i and temperature > 0 else None
        for t, i in zip(totals["kl"], infinite, strict=True)
    ]
    means["total_variation"] = [1 - v for v in means["overlap"]]
    cell["measures"] = means
    cell["block"] = (np.sum([r.block for r in rows], axis=0) / starts).tolist()
    cell["standard"] = (np.sum([r.standard for r in rows], axis=0) / starts).tolist()
    return cell


def _interval(drafts: np.ndarray, accepted: np.ndarray, seed: int) -> dict[str, Any]:
    if len(drafts) < 2:
        value = float(1 + accepted.sum() / drafts.sum())
        return {"value": value, "low": None, "high": None, "se": None, "prompts": len(drafts)}
    return stats.accepted_length(drafts, accepted, seed=seed).to_json()


def reach(rows: Sequence[Row], cap: float | None) -> dict[str, Any]:
    """How far the body's largest logits reach into its softcap, over the answers' positions."""
    top = np.concatenate([r.top for r in rows])
    gap = np.concatenate([r.capped for r in rows])
    found: dict[str, Any] = {
        "cap": cap,
        "largest_raw_logit": {q: float(np.quantile(top, q)) for q in (0.1, 0.5, 0.9, 0.99)},
        "positions": len(top),
    }
    if cap is not None:
        found["share_above_half_the_cap"] = float((top > cap / 2).mean())
        found["total_variation_of_leaving_it_out"] = {
            "mean": float(gap.mean()), "largest": float(gap.max()),
        }  # fmt: skip
    return found


def sample_method(arm: ArmSpec) -> str:
    """The way of drafting, one of a row's `counts`, that an arm's config asks for.

    vLLM does as asked, or the server was refused (`recipes.vllm.drafting`).
    """
    config = arm.speculative_config or {}
    way = str(config.get("draft_sample_method", GREEDY))
    block = config.get("rejection_sample_method") == "block"
    return BLOCK if block and way == PROBABILISTIC else way


def arms_of(results: Results, drafter: str, body: str) -> list[ArmSpec]:
    """The arms of a bench that serve this drafter with this body."""

    def same(one: str, other: str) -> bool:
        return one == other or (bool(one) and Path(one).resolve() == Path(other).resolve())

    return [
        arm
        for arm in results.arms
        if arm.n and same(str((arm.speculative_config or {}).get("model", "")), drafter)
        and same(arm.body or results.body, body)
    ]  # fmt: skip


def errors(
    results: Results, rows: Sequence[Row], drafter: str, body: str, depth: int, seed: int = 0
) -> list[dict[str, Any]]:
    """What the bench measured beside what is expected: tokens a step, and tok/s from step costs.

    Only prompts of both are compared, at one request at a time.
    """
    found = []
    for arm in arms_of(results, drafter, body):
        if arm.n > depth:
            continue
        way = sample_method(arm)
        costs = [c for c in results.costs if (c.arm, c.n, c.concurrency) == (arm.name, arm.n, 1)]
        for temperature in sorted({r.temperature for r in rows}):
            mine = [r for r in rows if r.temperature == temperature and r.starts > 0]
            theirs = [
                q for q in results.requests
                if (q.arm, q.n, q.temperature, q.concurrency) == (arm.name, arm.n, temperature, 1)
                and q.drafts
            ]  # fmt: skip
            for kind in [ALL, *sorted({r.workload for r in mine})]:
                cell = _error(
                    [r for r in mine if kind in (ALL, r.workload)], theirs, way, arm.n, costs, seed
                )
                if cell is not None:
                    found.append(
                        {"arm": arm.name, "n": arm.n, "drafting": way, "temperature": temperature,
                         "workload": kind, **cell}
                    )  # fmt: skip
    return found


def _error(
    mine: Sequence[Row],
    theirs: Sequence[RequestRow],
    way: str,
    n: int,
    costs: Sequence[StepCost],
    seed: int,
) -> dict[str, Any] | None:
    common = {r.prompt_id for r in mine} & {q.prompt_id for q in theirs}
    if len(common) < 2:
        return None
    mine = [r for r in mine if r.prompt_id in common]
    theirs = [q for q in theirs if q.prompt_id in common]
    order = list(dict.fromkeys(r.prompt_id for r in mine))
    drafts, accepted = by_prompt(mine, way, n)
    counted = {k: [q for q in theirs if q.prompt_id == k] for k in order}
    real_drafts = np.array([sum(q.drafts for q in counted[k]) for k in order], dtype=np.float64)
    real = np.array(
        [np.sum([_padded(q.accepted, n) for q in counted[k]], axis=0) for k in order],
        dtype=np.float64,
    )
    expected = stats.accepted_length(drafts, accepted, seed=seed)
    measured = stats.accepted_length(real_drafts, real, seed=seed)
    difference = stats.length_difference(drafts, accepted, real_drafts, real, seed=seed)
    cell: dict[str, Any] = {
        "prompts": len(order),
        "expected": expected.to_json(),
        "measured": measured.to_json(),
        "error": difference.to_json(),
        "acceptance_expected": (accepted.sum(0) / drafts.sum()).tolist(),
        "acceptance_measured": (real.sum(0) / real_drafts.sum()).tolist(),
    }
    if costs:
        step = costs[0].verify_s + costs[0].draft_s
        timed = [q for q in theirs if q.ttft_s is not None and q.seconds > q.ttft_s]
        after = sum(q.completion_tokens - 1 for q in timed)
        seconds = sum(q.seconds - (q.ttft_s or 0.0) for q in timed)
        cell["expected_tok_s"] = kept_a_step(mine, way, n) / step
        cell["measured_tok_s"] = after / seconds if seconds else None
    return cell


def _padded(accepted: Sequence[int], n: int) -> list[int]:
    return [*accepted, *[0] * (n - len(accepted))][:n]
