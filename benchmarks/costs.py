"""What a step costs: from the bench's own requests, split into drafting and verifying.

A step without speculation is the time between tokens. A step with n drafts is the time after the
first token over the steps counted. How much of it is the body's pass over n + 1 tokens is probed
apart, on the server without speculation: the time to the first token of prompts of 1 and of n + 1
tokens, too short for any cache. The rest of the step is drafting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.break_even import StepCost
from benchmarks.client import BenchError, Client
from benchmarks.schema import ArmSpec, RequestRow

# How costs were timed where no synthetic arm was: what the report says first.
OWN_STEPS = "steps of the bench"

# Odd, so that the median is one of them.
PROBES = 15


def step_seconds(rows: Iterable[RequestRow]) -> float | None:
    """Median seconds a step of some requests, all of the batch together; None if none tells.

    The first token comes from the prompt's pass, so n = 0 has a step for each further token.
    """
    found = []
    for r in rows:
        steps = r.drafts if r.n else r.completion_tokens - 1
        if r.ttft_s is not None and steps >= 2:
            found.append((r.seconds - r.ttft_s) / steps)
    return median(found) if found else None


def step_costs(
    rows: Sequence[RequestRow],
    arms: Sequence[ArmSpec],
    verify_extra: dict[int, float] | None = None,
) -> list[StepCost]:
    """The costs of every drafting arm at every n and concurrency.

    Args:
        verify_extra: seconds that a pass over n + 1 tokens takes longer than one over a single
            token, by n, as `probe_verify` gives them at one request at a time; without it (and at
            other concurrencies) the whole step stands in `verify_s`.
    """
    by_cell: dict[tuple[str, int, int], list[RequestRow]] = {}
    for r in rows:
        by_cell.setdefault((r.arm, r.n, r.concurrency), []).append(r)
    base_of = {a.like: a.name for a in arms if a.n == 0}
    found = []
    for arm in arms:
        for concurrency in sorted({r.concurrency for r in rows}):
            base = step_seconds(by_cell.get((base_of.get(arm.like, ""), 0, concurrency), ()))
            step = step_seconds(by_cell.get((arm.name, arm.n, concurrency), ()))
            if arm.n == 0 or base is None or step is None:
                continue
            cost = StepCost(arm.n, concurrency, base, step, 0.0, arm=arm.name)
            extra = (verify_extra or {}).get(arm.n)
            if extra is not None and concurrency == 1 and base + extra < step:
                verify = base + extra
                cost = replace(cost, verify_s=verify, draft_s=step - verify)
            found.append(cost)
    return found


def probe_verify(client: Client, ns: Iterable[int]) -> dict[int, float]:
    """Seconds that a pass over n + 1 tokens takes longer than one over a single token, by n.

    Empty where the server does not answer bare token ids. Times of one request at a time, at an
    empty context; medians of PROBES, taken in turn.
    """
    depths = sorted({n for n in ns if n > 0})
    times: dict[int, list[float]] = {n: [] for n in (0, *depths)}
    try:
        for k in range(PROBES):
            for n in times:
                times[n].append(
                    client.first_token_seconds([5 + (k + i) % 50 for i in range(n + 1)])
                )
    except BenchError:
        return {}
    return {n: max(0.0, median(times[n]) - median(times[0])) for n in depths}
