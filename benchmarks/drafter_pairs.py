"""Drafters against each other on the same prompts: acceptance, not speed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

from benchmarks import stats, wording
from benchmarks.cells import ByPrompt, CellKey
from benchmarks.schema import RequestRow

Cells = Mapping[CellKey, Sequence[RequestRow]]


def pairs(cells: Cells, refused: Collection[tuple[str, int]] = ()) -> list[dict[str, Any]]:
    """Each two drafters, at the greatest n that both have.

    A pair may differ in body or flags: what is compared is acceptance, by prompt. Where either is
    refused there is no difference to speak of, as a loop is accepted by any drafter.

    Args:
        cells: rows that may be used, by cell.
        refused: arms (name, n) with degenerate text.
    """
    found = []
    names = list(dict.fromkeys(k.arm for k in cells if k.n > 0))
    for a, b in combinations(names, 2):
        for place in dict.fromkeys(k.place for k in cells):
            depths = [{k.n for k in cells if k.arm == arm and k.place == place and k.n > 0
                       and (k.arm, k.n) not in refused} for arm in (a, b)]  # fmt: skip
            n = max(depths[0] & depths[1], default=0)
            if n:
                found += _pair(CellKey(a, n, *place), CellKey(b, n, *place), cells)
    return found


def _pair(a: CellKey, b: CellKey, cells: Cells) -> list[dict[str, Any]]:
    drafted = [{r.prompt_id for r in cells[k] if r.drafts > 0} for k in (a, b)]
    common = sorted(drafted[0] & drafted[1])
    if len(common) < 2:
        return []
    x, y = (ByPrompt.of([r for r in cells[k] if r.prompt_id in common], common) for k in (a, b))
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
