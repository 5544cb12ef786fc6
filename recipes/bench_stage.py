"""The bench stage: which servers are compared, and their measurement one after the other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.acceptance import Measurement, Prompt, load_prompts, measure
from recipes.config import Recipe
from recipes.display import Activity
from recipes.run_folder import digest, file_digest, write_atomically
from recipes.server_specs import drafting_server, plain_server, serving_flags
from recipes.stage import Context, body_identity, require, stage, trained_drafter
from recipes.upstream import has_accelerator
from recipes.vllm_server import ServerSpec

NO_SPECULATION = "no speculation"
SMOKE_PROMPTS = Path(__file__).parent.parent / "benchmarks" / "workloads" / "smoke.jsonl"


@dataclass(frozen=True)
class Arm:
    """One way of serving that the bench compares."""

    name: str
    n: int
    server: ServerSpec


def bench_arms(ctx: Context, drafter_name: str = "drafter") -> list[Arm]:
    """The trained drafter at every n of `bench_n`; n = 0 is the body without speculation."""
    drafter = trained_drafter(ctx.run)
    return [
        Arm(NO_SPECULATION, 0, plain_server(ctx.recipe, ctx.label + "body"))
        if n == 0
        else Arm(drafter_name, n, drafting_server(ctx.recipe, drafter, n, f"{ctx.label}bench-n{n}"))
        for n in ctx.recipe.bench_n
    ]


def bench(ctx: Context, arms: list[Arm] | None = None) -> list[Measurement]:
    """Acceptance and tok/s of each arm through the chat endpoint, one arm at a time."""
    recipe = ctx.recipe
    trained = require(ctx.run, "train")
    arms = bench_arms(ctx) if arms is None else arms
    prompts = bench_prompts(recipe)
    made_from = {
        "drafter": trained["output"],
        "body": body_identity(recipe.body),
        "prompts": digest([(p.id, p.kind, p.messages) for p in prompts]),
        "arms": [(arm.name, arm.n) for arm in arms],
        "temperatures": recipe.bench_temperatures,
        "max_tokens": recipe.bench_max_tokens,
        "serving": serving_flags(recipe),
    }
    results_file = ctx.run.stage_dir("bench") / "measurements.json"
    with stage(ctx, "bench", made_from) as work:
        if work is None:
            return read_measurements(results_file)
        measured: list[Measurement] = []
        if not has_accelerator():
            # Starting a server takes both cores: none may start while another is measured. On a
            # GPU two bodies do not fit side by side, so there each starts in its turn.
            work.activity.update(f"starting {len(arms)} servers")
            ctx.servers.start_all([arm.server for arm in arms])
        for arm in arms:
            measured += _measure_arm(ctx, work.activity, arm, prompts)
        write_atomically(results_file, json.dumps([m.to_json() for m in measured], indent=1))
        work.finish(output=file_digest(results_file))
    return measured


def _measure_arm(
    ctx: Context, activity: Activity, arm: Arm, prompts: list[Prompt]
) -> list[Measurement]:
    """All kinds and temperatures of one arm."""
    measured: list[Measurement] = []
    with ctx.servers.lease(arm.server) as server:
        for temperature in ctx.recipe.bench_temperatures:

            def show(done: int, total: int, temperature: float = temperature) -> None:
                activity.update(
                    f"{arm.name}, n = {arm.n}, T = {temperature}: {done} of {total} prompts"
                )

            measured += measure(
                server.base_url,
                server.model,
                prompts,
                arm=arm.name,
                n=arm.n,
                temperature=temperature,
                max_tokens=ctx.recipe.bench_max_tokens,
                progress=show,
            )
    return measured


def read_measurements(path: Path) -> list[Measurement]:
    """What an earlier bench wrote."""
    rows = json.loads(path.read_text("utf-8"))
    return [Measurement.from_json(row) for row in rows]


def bench_prompts(recipe: Recipe) -> list[Prompt]:
    return load_prompts(Path(recipe.bench_prompts) if recipe.bench_prompts else SMOKE_PROMPTS)
