"""Variants of a drafter compared: what is paired by prompt, and what another seed may do.

Two kinds of noise. Over prompts: all variants are judged on the same answers, so a difference is
paired by prompt, the trainings of all seeds added up (`tokens_a_step`, `acceptance`). Over
trainings: each seed's own difference, variant and base trained with the same seed (`by_seed`), and
from three seeds on Student's interval of their mean (`over_seeds`). A difference that is shown by
the first and not by the second says something of these trainings only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.predict import summary
from benchmarks.predict.evaluate import BLOCK, GREEDY, PROBABILISTIC, Row
from benchmarks.predict.summary import by_prompt

# variant -> seed -> rows
Rows = Mapping[str, Mapping[int, Sequence[Row]]]
# Student's 97.5 % quantile by degrees of freedom: three to six seeds.
_STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}


def pooled(seeds: Mapping[int, Sequence[Row]]) -> list[Row]:
    """The rows of all seeds; sums by prompt then run over all of them."""
    return [row for rows in seeds.values() for row in rows]


def compare(rows: Rows, depth: int, base: str) -> list[dict[str, Any]]:
    """Each variant minus `base`: expected tokens a step and acceptance by position, n = `depth`.

    All variants have the same seeds.
    """
    found = []
    temperatures = sorted({r.temperature for r in pooled(rows[base])})
    for name in rows:
        if name == base:
            continue
        for temperature in temperatures:
            # At temperature 0 both ways of drafting are one.
            for way in (GREEDY, PROBABILISTIC) if temperature > 0 else (GREEDY,):

                def counts(chosen: Sequence[Row], t: float = temperature, w: str = way) -> Any:
                    here = [r for r in chosen if r.temperature == t and r.starts > 0]
                    return by_prompt(here, w, depth)

                sides = (*counts(pooled(rows[name])), *counts(pooled(rows[base])))
                seeds = {
                    seed: stats.length_difference(
                        *counts(rows[name][seed]), *counts(rows[base][seed])
                    ).value
                    for seed in rows[base]
                }
                found.append(
                    {"variant": name, "minus": base, "temperature": temperature, "drafting": way,
                     "tokens_a_step": stats.length_difference(*sides).to_json(),
                     "acceptance": [d.to_json() for d in stats.acceptance_difference(*sides)],
                     "by_seed": seeds, "over_seeds": over_seeds(list(seeds.values()))}
                )  # fmt: skip
    return found


def over_seeds(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and Student's 95 % interval of three to six seeds' values; None for other numbers."""
    half = _STUDENT.get(len(values) - 1)
    if half is None:
        return None
    mean = float(np.mean(values))
    half *= float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


def brief(cells: Sequence[Mapping[str, Any]], depth: int) -> list[dict[str, Any]]:
    """Of `summary.summarise`: all workloads together, n = `depth`, as the bench would count."""
    ways = (GREEDY, PROBABILISTIC, BLOCK)
    several = any(cell["workload"] == summary.ALL for cell in cells)
    return [
        {
            "temperature": cell["temperature"], "prompts": cell["prompts"],
            "starts": cell["starts"],
            "tokens_a_step": {way: cell["tokens_a_step"][way][depth] for way in ways},
            "acceptance": {way: cell["acceptance"][way] for way in ways},
            "measures": cell["measures"],
        }
        for cell in cells if cell["workload"] == summary.ALL or not several
    ]  # fmt: skip


def rounded(value: Any) -> Any:
    """The same with five digits behind the point: intervals are wider than that by far."""
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def lines(report: dict[str, Any]) -> list[str]:
    """Tokens a step of every variant, at every temperature, both ways of drafting; differences."""
    found = []
    for name, variant in report["variants"].items():
        for cell in variant["cells"]:
            told = {w: cell["tokens_a_step"][w]["value"] for w in (GREEDY, PROBABILISTIC)}
            found.append(
                f"{name:<28} T = {cell['temperature']:g}: greedy {told['greedy']:.3f}, "
                f"probabilistic {told['probabilistic']:.3f}, p(argmax q) "
                f"{cell['measures']['greedy'][0]:.3f}, overlap {cell['measures']['overlap'][0]:.3f}"
            )
    for d in report["differences"]:
        t, s = d["tokens_a_step"], d["over_seeds"]
        seeds = ", ".join(f"{v:+.3f}" for v in d["by_seed"].values())
        spread = f" ({s['low']:+.3f} to {s['high']:+.3f})" if s else ""
        found.append(
            f"{d['variant']} - {d['minus']}, T = {d['temperature']:g}, {d['drafting']}: "
            f"{t['value']:+.3f} ({t['low']:+.3f} to {t['high']:+.3f}); seeds {seeds}{spread}"
        )
    return found
