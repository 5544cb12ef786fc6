"""After the timed requests: how close was the body's choice where an answer first diverged?

The base server is asked once more, untimed, for those prompts only, with log-probabilities. Where
its answer is the same up to the divergence, the gap between its two best tokens there is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.asking import Cell
from benchmarks.client import BenchError, Client
from benchmarks.prompts import WorkloadPrompt
from benchmarks.schema import ArmSpec, RequestRow

# Divergences looked at for each base and concurrency: enough to tell ties from errors.
MOST = 40


def diverging(
    rows: Sequence[RequestRow], arms: Sequence[ArmSpec]
) -> dict[tuple[str, int], list[str]]:
    """Prompts whose answer at T = 0 is not the base's, by (base arm, concurrency).

    Only answers known by token ids are compared.
    """
    like = {(a.name, a.n): a.like for a in arms}
    bases = {a.like: a.name for a in arms if a.n == 0 and not a.synthetic}
    cold = [r for r in rows if r.temperature == 0 and r.token_ids is not None]
    plain = {(r.arm, r.concurrency, r.prompt_id): r for r in cold if r.n == 0}
    synthetic = {(a.name, a.n) for a in arms if a.synthetic}
    found: dict[tuple[str, int], list[str]] = {}
    for r in cold:
        base = bases.get(like[r.arm, r.n])
        if r.n == 0 or base is None or (r.arm, r.n) in synthetic:
            continue
        reference = plain.get((base, r.concurrency, r.prompt_id))
        if reference is not None and reference.token_ids != r.token_ids:
            ids = found.setdefault((base, r.concurrency), [])
            if r.prompt_id not in ids and len(ids) < MOST:
                ids.append(r.prompt_id)
    return found


def with_gaps(
    rows: Sequence[RequestRow],
    client: Client,
    cell: Cell,
    prompts: Sequence[WorkloadPrompt],
) -> list[RequestRow]:
    """The rows, with gaps in those of the base `cell.arm` that answer `prompts` at T = 0.

    A server that gives no log-probabilities leaves the rows as they are: unknown gaps are reported
    as unknown.
    """
    known: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {}
    for prompt in prompts:
        try:
            known[prompt.id] = client.gaps(
                prompt.messages, f"prompt {prompt.id}", **cell.sampling(prompt.id)
            )
        except (BenchError, LookupError, TypeError, ValueError):
            continue
    return [_with_gap(r, known) if _is_base(r, cell) else r for r in rows]


def _is_base(row: RequestRow, cell: Cell) -> bool:
    key = (row.arm, row.n, row.temperature, row.concurrency)
    return key == (cell.arm.name, 0, 0.0, cell.concurrency)


def _with_gap(
    row: RequestRow, known: dict[str, tuple[tuple[int, ...], tuple[float, ...]]]
) -> RequestRow:
    ids, gaps = known.get(row.prompt_id, ((), ()))
    mine = row.token_ids or ()
    same = next((k for k, (a, b) in enumerate(zip(mine, ids, strict=False)) if a != b),
                min(len(mine), len(ids)))  # fmt: skip
    # A gap counts up to the first token that the second asking answered otherwise, and there too:
    # both answers had the same beginning.
    return replace(row, gaps=gaps[: same + 1]) if gaps else row
