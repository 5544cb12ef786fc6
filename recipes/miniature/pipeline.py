"""The miniature: a tiny Gemma 4 body, and the recipe's own stages run on it.

Before the recipe's stages come two steps that a real run finds on the hub: the bodies (one trained
to answer and to refuse, one with the refusals projected out) and the vanilla drafter A, trained on
the vanilla body by the same stages in the folder `vanilla/`. The recipe then fine-tunes A into B on
what the abliterated body says. Servers start ahead of need, while something else runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import kinds, stages
from recipes.bench_stage import NO_SPECULATION, bench, compares_drafting, one_arm
from recipes.calibrate_stage import served_drafter
from recipes.config import Recipe
from recipes.miniature import report
from recipes.plan import StagePlan, make_plan
from recipes.process import StageError
from recipes.run_folder import RunFolder, write_atomically
from recipes.stage import Context, stage, trained_drafter
from recipes.upstream import has_accelerator, newest_drafter
from recipes.vllm.spec import require_installed
from recipes.vllm_server import ServerSpec, warm_pool

# Held-out prompts of each kind in the bench.
BENCH_PROMPTS = 12
# Drafter A starts from nothing. Fewer epochs or 1e-3 undertrain it (benchmarks/README.md).
DRAFTER_A: dict[str, Any] = {
    "epochs": 6,
    "lr": 4e-3,
    "draft_start": "",
    "hidden_states": "offline",
}
# How many steps ahead servers are started.
LOOKAHEAD = 2
# Seconds on two cores; the display counts down from these.
EXPECTED_S = {
    "bodies": 140.0,
    "vanilla/regenerate": 20.0,
    "vanilla/prepare": 5.0,
    "vanilla/train": 65.0,
    "regenerate": 15.0,
    "prepare": 5.0,
    "train": 60.0,
    "bench": 130.0,
    "serve": 10.0,
}


def body_dir(run: RunFolder, kind: str) -> Path:
    """Folder of the `vanilla` or the `abliterated` body."""
    return run.stage_dir("bodies") / kind


def with_bodies(recipe: Recipe, run: RunFolder, *, planning: bool = False) -> Recipe:
    """The recipe with the miniature's own body, prompts and drafter A filled in.

    Raises:
        StageError: drafter A is not trained yet (unless `planning`, which names where it will be).
    """
    checkpoints = run.root / "vanilla" / "train" / "checkpoints"
    drafter = checkpoints / str(DRAFTER_A["epochs"] - 1)
    if not planning:
        try:
            drafter = newest_drafter(checkpoints)
        except FileNotFoundError:
            raise StageError(
                f"{run.root} holds no miniature drafter yet: run `all --preset miniature` first."
            ) from None
    folder = run.stage_dir("bodies")
    return dataclasses.replace(
        recipe,
        body=recipe.body or str(body_dir(run, "abliterated")),
        draft_start=recipe.draft_start or str(drafter),
        prompts=recipe.prompts or str(folder / "prompts.train.jsonl"),
        bench_prompts=recipe.bench_prompts or str(folder / "prompts.heldout.jsonl"),
    )


@dataclass
class _Step:
    """One stage of one of the two runs, and the servers that it will lease."""

    context: Callable[[], Context]
    name: str
    servers: Callable[[], list[ServerSpec]]


def run(ctx: Context, names: Sequence[str]) -> None:
    """Run the named stages, and before them what they need and the folder does not hold yet."""
    ctx.expected = EXPECTED_S
    # Body, trainer and servers share the cores. Threads that wait spin for some microseconds, then
    # sleep: with no spin at all (OMP_WAIT_POLICY=PASSIVE) a training step took 2.2 times as long,
    # with OpenMP's default they hold the core that a server needs. Read when torch is loaded,
    # which has not happened yet, here and in every child.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    # vLLM and upstream are imported once, while the body trains; servers and commands are forks.
    ctx.warm = warm_pool(ctx.run.root / "logs")
    require_installed()  # before minutes of training
    make_bodies(ctx)
    vanilla = _vanilla_context(ctx)

    def planned() -> Context:
        return dataclasses.replace(ctx, recipe=with_bodies(ctx.recipe, ctx.run, planning=True))

    def main() -> Context:
        return dataclasses.replace(ctx, recipe=with_bodies(ctx.recipe, ctx.run))

    def step(context: Callable[[], Context], name: str) -> _Step:
        def ahead() -> list[ServerSpec]:
            # One with a store cannot start before the store does.
            found = stages.servers_of(context(), name)
            return [spec for spec in found if spec.extraction_store is None]

        return _Step(context, name, ahead)

    first = [step(lambda: vanilla, "regenerate"), step(lambda: vanilla, "prepare")]
    steps = [step(planned, name) for name in ("regenerate", "prepare") if name in names]
    if {"train", "calibrate", "bench", "serve"} & set(names):
        steps = [*first, *steps, step(lambda: vanilla, "train")]
    after = ("train", "calibrate", "bench", "serve")
    steps += [step(main, name) for name in after if name in names]

    # Two bodies side by side do not fit on a GPU: there each server starts in its turn.
    alone = not has_accelerator()
    for number, current in enumerate(steps):
        for ahead in steps[number : number + 1 + LOOKAHEAD]:
            # A bench starts its own servers: nothing else may run while it measures, and `main`
            # cannot be asked before drafter A exists.
            if alone and ahead.context is not main and not ahead.context().is_finished(ahead.name):
                ctx.servers.prestart(*ahead.servers())
        context = current.context()
        if current.name == "bench":
            _bench(context, vanilla)
        else:
            stages.STAGES[current.name](context)


def _vanilla_recipe(recipe: Recipe, run: RunFolder) -> Recipe:
    folder = run.stage_dir("bodies")
    return dataclasses.replace(
        recipe,
        **DRAFTER_A,
        body=str(body_dir(run, "vanilla")),
        prompts=str(folder / "prompts.train.jsonl"),
        bench_prompts=str(folder / "prompts.heldout.jsonl"),
    )


def _vanilla_context(ctx: Context) -> Context:
    recipe = _vanilla_recipe(ctx.recipe, ctx.run)
    return dataclasses.replace(
        ctx, recipe=recipe, run=RunFolder(ctx.run.root / "vanilla"), label="vanilla/"
    )


def plan(recipe: Recipe, run: RunFolder) -> list[StagePlan]:
    """Every step as `plan` shows it: the bodies, drafter A's stages, then the recipe's own."""
    costs = (
        "a body is trained, then its refusals are projected out",
        "memory: about 5 GB in the whole run, most in the bench, whose servers all run together",
        "disk: about 0.1 GB",
    )
    bodies = StagePlan("bodies", (), costs)
    first = make_plan(_vanilla_recipe(recipe, run), RunFolder(run.root / "vanilla"), "miniature")
    vanilla = [
        dataclasses.replace(one, name=f"vanilla/{one.name}")
        for one in first
        if one.name in ("regenerate", "prepare", "train")
    ]
    own = make_plan(with_bodies(recipe, run, planning=True), run, "miniature")

    def times(name: str) -> tuple[str, ...]:
        seconds = EXPECTED_S.get(name)
        return () if seconds is None else (f"time: about {seconds:.0f} s on 2 cores",)

    return [
        dataclasses.replace(one, costs=(*one.costs, *times(one.name)))
        for one in (bodies, *vanilla, *own)
    ]


def make_bodies(ctx: Context) -> None:
    """Train the vanilla body, project its refusals out, write the prompts of both kinds."""
    from recipes.miniature.abliterate import make_abliterated
    from recipes.miniature.body import make_body
    from recipes.miniature.corpus import prompts

    with stage(ctx, "bodies", {"seed": ctx.recipe.seed, "samples": ctx.recipe.samples}) as work:
        if work is None:
            return

        def training(step: int, steps: int, loss: float) -> None:
            work.activity.update(
                f"vanilla body, step {step} of {steps}, loss {loss:.2f}", 0.85 * step / steps
            )

        def abliterating(step: int, steps: int, _loss: float) -> None:
            work.activity.update(
                f"abliteration, trial {step} of {steps}", 0.85 + 0.15 * step / steps
            )

        vanilla, abliterated = body_dir(ctx.run, "vanilla"), body_dir(ctx.run, "abliterated")
        if not vanilla.exists():
            make_body(vanilla, ctx.recipe.seed, training)
        if not abliterated.exists():
            make_abliterated(vanilla, abliterated, ctx.recipe.seed, abliterating)

        half = ctx.recipe.samples // 2
        rows = [
            {"id": p.id, "kind": p.kind, "messages": list(p.messages)}
            for pair in zip(prompts("train", "harmless"), prompts("train", "refused"), strict=False)
            for p in pair
        ][: 2 * half]
        if len(rows) < 2 * half:
            raise StageError(
                f"samples={ctx.recipe.samples} is more than the miniature's {len(rows)} prompts."
            )
        heldout = [
            {"id": p.id, "kind": p.kind, "messages": list(p.messages), "answer": p.answer}
            for kind in ("harmless", "refused")
            for p in prompts("heldout", kind)[:BENCH_PROMPTS]
        ]
        for name, chosen in (("train", rows), ("heldout", heldout)):
            text = "".join(json.dumps(row) + "\n" for row in chosen)
            write_atomically(work.folder / f"prompts.{name}.jsonl", text)
        work.finish(
            vanilla=json.loads((vanilla / "body.json").read_text("utf-8")),
            abliterated=json.loads((abliterated / "body.json").read_text("utf-8")),
        )


def _bench(ctx: Context, vanilla: Context) -> None:
    """The recipe's bench of drafter B, and beside it drafter A on both bodies."""
    n = ctx.recipe.num_speculative_tokens
    served = kinds.served(ctx.recipe.drafter_kind)
    a = {**served, "model": str(trained_drafter(vanilla.run))}
    b = {**served, "model": str(served_drafter(ctx.recipe, ctx.run).folder)}
    arms = [
        one_arm(ctx.recipe, report.A_VANILLA, n, a, body=vanilla.recipe.body),
        one_arm(ctx.recipe, report.A_ABLITERATED, n, a),
        one_arm(ctx.recipe, NO_SPECULATION, 0),
        *(one_arm(ctx.recipe, report.B_ABLITERATED, k, b) for k in ctx.recipe.bench_n if k),
    ]
    if compares_drafting(ctx.recipe):
        drawn = {**b, "draft_sample_method": "probabilistic"}
        arms.append(one_arm(ctx.recipe, f"{report.B_ABLITERATED}, probabilistic", n, drawn))
    measured = bench(ctx, arms)
    validation = {
        name: run.manifest("train")["validation"]
        for name, run in (("A", vanilla.run), ("B", ctx.run))
    }
    summary = report.summarise(measured, ctx.run.manifest("bodies"), n, validation)
    folder = ctx.run.stage_dir("bench")
    write_atomically(folder / "miniature.json", json.dumps(summary, indent=2) + "\n")
    report.draw(summary, folder / "miniature.png")
    report.show(summary, ctx.display.console)
    ctx.display.line(f"written: {folder / 'miniature.json'}, {folder / 'miniature.png'}")
