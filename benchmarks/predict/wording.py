"""A prediction in words and tables, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.predict.evaluate import FORCED, GREEDY, PROBABILISTIC


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report of `session.predict`, the verdicts last."""
    depth = report["depth"]
    yield from _softcap(report["softcap"])
    for name, found in report["drafters"].items():
        yield ""
        yield f"{name} on {report['body']}: expected, n = {depth}, {report['answers']} answers"
        yield (
            f"  {'T':>4} {'prompts':<12} {'greedy: tokens a step':<26} "
            f"{'probabilistic':<22} {'difference (95 %)':<24} p(argmax q) | sum min(p, q) at 0"
        )
        for cell in found["cells"]:
            yield _row(cell, depth)
        for cell in found["cells"]:
            yield from _positions(cell)
        for error in found["against_bench"]:
            yield _error(error)
    for name, found in report["drafters"].items():
        for verdict in found["verdicts"]:
            reason = str(verdict["reason"])
            yield f"{name}: {verdict['verdict']}. {reason[:1].upper()}{reason[1:]}"


def _softcap(found: dict[str, Any]) -> Iterator[str]:
    top = found["largest_raw_logit"]
    spread = ", ".join(f"{v:.1f}" for v in top.values())
    if found["cap"] is None:
        yield f"softcap: none; largest raw logit at the 10/50/90/99 % quantiles: {spread}"
        return
    gap = found["total_variation_of_leaving_it_out"]
    yield (
        f"softcap {found['cap']:g}: largest raw logit at the 10/50/90/99 % quantiles {spread}; "
        f"above half of the cap at {found['share_above_half_the_cap']:.0%} of {found['positions']} "
        f"positions; a teacher without it is off by a total variation of {gap['mean']:.3f} "
        f"(largest {gap['largest']:.3f}) at T = 1"
    )


def _row(cell: dict[str, Any], depth: int) -> str:
    def length(way: str) -> str:
        found = cell["tokens_a_step"][way][depth]
        if found["low"] is None:
            return f"{found['value']:.2f}"
        return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"

    difference = cell["probabilistic_minus_greedy"].get(depth)
    said = (
        "" if difference is None
        else f"{difference['value']:+.2f} ({difference['low']:+.2f} to {difference['high']:+.2f})"
    )  # fmt: skip
    measures = cell["measures"]
    return (
        f"  {cell['temperature']:>4g} {cell['workload']:<12} {length(GREEDY):<26} "
        f"{length(PROBABILISTIC):<22} {said:<24} {measures['greedy'][0]:.3f} | "
        f"{measures['overlap'][0]:.3f}"
    )


def _positions(cell: dict[str, Any]) -> Iterator[str]:
    def rates(values: list[float | None]) -> str:
        return " ".join("  - " if v is None else f"{v:.3f}" for v in values)

    yield f"  T = {cell['temperature']:g}, {cell['workload']}, by position:"
    for way in (GREEDY, PROBABILISTIC):
        yield (
            f"    {way:<14} accepted {rates(cell['acceptance'][way])}; teacher-forced "
            f"{rates(cell['acceptance'][FORCED[way]])}"
        )
    measures = cell["measures"]
    yield (
        f"    every start: KL {rates(measures['kl'])}; total variation "
        f"{rates(measures['total_variation'])}; outside the draft vocabulary "
        f"{measures['unsayable'][0]:.3f}"
    )

    if cell["temperature"] > 0:
        yield (
            f"    probabilistic, every start alike: {rates(cell['standard'])}; with block "
            f"verification {rates(cell['block'])}"
        )


def _error(e: dict[str, Any]) -> str:
    told = (
        f"  bench, {e['arm']}, n = {e['n']}, {e['drafting']}, T = {e['temperature']:g}, "
        f"{e['workload']}: expected {e['expected']['value']:.2f} tokens a step, measured "
        f"{e['measured']['value']:.2f}, error {e['error']['value']:+.2f} "
        f"({e['error']['low']:+.2f} to {e['error']['high']:+.2f})"
    )
    if e.get("measured_tok_s"):
        told += (
            f"; {e['expected_tok_s']:.0f} and {e['measured_tok_s']:.0f} tok/s after the first token"
        )
    return told
