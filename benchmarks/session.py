"""A whole bench: requests, near ties, step costs, report. Used alone and by the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.arms import Arm
from benchmarks.bench_setup import Setup
from benchmarks.break_even import StepCost
from benchmarks.client import BenchError
from benchmarks.costs import OWN_STEPS, probe_verify, step_costs
from benchmarks.near_ties import diverging, with_gaps
from benchmarks.report import write_report
from benchmarks.runner import Bench, Progress
from benchmarks.schedule import Visit
from benchmarks.schema import Results
from recipes.servers import ServerPool
from recipes.vllm_server import ServerError

# Conditional acceptance of the synthetic arms. The cost of a step hardly depends on it; in the
# middle, steps of every length occur.
SYNTHETIC = 0.7
_SYNTHETIC_PROMPTS = 8
_SYNTHETIC_TOKENS = 128


@dataclass(frozen=True)
class Outcome:
    """What a bench came to. `refused`: some arm's text is degenerate, exit code 3."""

    results: Results
    summary: dict[str, Any]

    @property
    def refused(self) -> bool:
        return bool(self.summary["refused"])


def run_bench(
    setup: Setup,
    folder: Path,
    pool: ServerPool,
    *,
    together: bool,
    progress: Progress,
    break_even: bool = False,
) -> Outcome:
    """Measure, look closer where answers diverge, time the steps, write the report into `folder`.

    Args:
        break_even: time the steps with vLLM's synthetic acceptance, which needs a server more for
            every drafter and n; else (and where vLLM refuses) with the bench's own steps.

    Raises:
        BenchError: the folder holds another bench, or nothing could be measured.
        OSError: the report cannot be written.
    """
    bench = Bench(setup, folder, pool, together=together, progress=progress)
    results, extra = _afterwards(bench, bench.run(), progress)
    costs, how = step_costs(results.requests, results.arms, extra), OWN_STEPS
    if break_even:
        synthetic, why = _synthetic(bench, folder / "break-even", progress)
        costs, how = (synthetic, why) if synthetic else (costs, f"{how} ({why})")
    results = replace(results, costs=tuple(replace(c, how=how) for c in costs))
    return Outcome(results, write_report(results, folder))


def _afterwards(
    bench: Bench, results: Results, progress: Progress
) -> tuple[Results, dict[int, float]]:
    """What the servers without speculation are asked besides, each leased once.

    Returns:
        The results with gaps where answers diverge, and the first such server's times of wider
        passes (`costs.probe_verify`).
    """
    prompts = {p.id: p for p in bench.setup.prompts}
    unlike = diverging(results.requests, results.arms)
    drafting = [a.n for a in results.arms if a.n]
    extra: dict[int, float] = {}
    bases = [k for k, a in enumerate(bench.setup.arms) if a.spec.n == 0]
    for index in bases:
        arm = bench.setup.arms[index].spec
        asked = {c: ids for (base, c), ids in unlike.items() if base == arm.name}
        first = index == bases[0] and bool(drafting)
        if index in bench.refused or not (asked or first):
            continue
        progress(f"{arm.name}: closer looks at {sum(map(len, asked.values()))} answers", 1.0)
        try:
            with bench.server(index, bench.together) as end, bench.client(end) as client:
                for concurrency, ids in asked.items():
                    cell = bench.cell(Visit(0, index), 0.0, concurrency)
                    rows = with_gaps(results.requests, client, cell, [prompts[i] for i in ids])
                    results = replace(results, requests=tuple(rows))
                if first:
                    extra = probe_verify(client, drafting)
        except (BenchError, ServerError):
            continue  # gaps and shares of a step stay unknown, and the report says so
    return results, extra


def _synthetic(bench: Bench, folder: Path, progress: Progress) -> tuple[list[StepCost], str]:
    """Costs from arms that accept at random, or none with the reason."""
    setup = bench.setup
    arms = [a for a in setup.arms if a.spec.n == 0 and a.server is not None]
    arms += [s for a in setup.arms if (s := _synthetic_arm(a)) is not None]
    smaller = replace(
        setup,
        arms=tuple(arms),
        prompts=setup.prompts[:_SYNTHETIC_PROMPTS],
        # As sampled as the bench: at 0 probabilistic arms would draft greedily and cost as little.
        temperatures=(max(setup.temperatures),),
        blocks=1,
        max_tokens=min(_SYNTHETIC_TOKENS, setup.max_tokens),
        request={**setup.request, "ignore_eos": True},
    )
    # One server at a time: the main arms' servers may still be up.
    timed = Bench(smaller, folder, bench.pool, together=False, progress=progress)
    try:
        found = timed.run()
    except BenchError as e:
        return [], f"synthetic acceptance: {e}"
    costs = step_costs(found.requests, found.arms)
    if not costs:
        first = next(iter(timed.refused.values()), "no drafting arm of ours")
        return [], f"synthetic acceptance refused: {first}"
    how = f"synthetic acceptance of {SYNTHETIC} at every position"
    lost = [arms[k].spec.name for k in sorted(timed.refused) if arms[k].spec.n > 0]
    if lost:
        how += f"; not timed so: {', '.join(lost)}: {timed.refused[min(timed.refused)]}"
    return costs, how


def _synthetic_arm(arm: Arm) -> Arm | None:
    """The same drafter, its proposals accepted at random at a known rate."""
    if arm.server is None or arm.spec.n == 0:
        return None
    config: Mapping[str, Any] = {
        **(arm.spec.speculative_config or {}),
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": [round(SYNTHETIC ** (k + 1), 4) for k in range(arm.spec.n)],
    }
    name = f"{arm.spec.name}, synthetic"
    spec = replace(arm.spec, name=name, speculative_config=dict(config), synthetic=True)
    server = replace(arm.server, name=f"{arm.server.name}-synthetic", speculative_config=config)
    return Arm(spec, server)
