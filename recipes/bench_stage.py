"""The bench stage: which arms are compared, and `benchmarks.session` over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.arm_verdict import EXIT_DEGENERATE
from benchmarks.arms import NO_SPECULATION, Arm, Drafter, multiply, with_server
from benchmarks.bench_setup import Setup
from benchmarks.client import Client, Reply
from benchmarks.measurement import Measurement, measurements
from benchmarks.prompts import (
    PromptError,
    WorkloadPrompt,
    first_of_each,
    load_workload,
    load_workloads,
)
from benchmarks.schema import ArmSpec, load
from benchmarks.session import run_bench
from benchmarks.summary import summarise
from benchmarks.words import spoken
from recipes import kinds
from recipes.calibrate_stage import served_drafter
from recipes.config import ConfigError, Recipe
from recipes.process import StageError
from recipes.run_folder import digest, file_digest
from recipes.server_specs import plain_server, serving_flags
from recipes.stage import Context, body_identity, stage
from recipes.upstream import has_accelerator
from recipes.vllm_server import Endpoint

__all__ = ["NO_SPECULATION", "answer_once", "bench", "bench_arms", "bench_prompts", "one_arm"]

FINE_TUNED, VANILLA = "fine-tuned", "vanilla"


def one_arm(
    recipe: Recipe,
    name: str,
    n: int,
    config: Mapping[str, Any] | None = None,
    *,
    body: str = "",
    label: str = "",
) -> Arm:
    """An arm at one n, with a server as this recipe starts them.

    Args:
        config: vLLM's speculative config without the number of tokens; None: no speculation.
        body: another body than the recipe's.
        label: goes before the server's name.
    """
    drafting = None if config is None else {**config, "num_speculative_tokens": n}
    return with_server(ArmSpec(name, n, drafting, body=body), plain_server(recipe), label=label)


def bench_arms(recipe: Recipe, drafter: Path) -> list[Arm]:
    """No speculation, and at every n the drafters that this recipe knows.

    Args:
        drafter: folder of the fine-tuned one.
    """
    served = kinds.served(recipe.drafter_kind)
    known = [Drafter(FINE_TUNED, {**served, "model": str(drafter)})]
    if recipe.draft_start:
        known.append(Drafter(VANILLA, {**served, "model": recipe.draft_start}))
    drawn = {**known[0].config, "draft_sample_method": "probabilistic"}
    probabilistic = Drafter(f"{FINE_TUNED}, probabilistic", drawn)
    if recipe.bench_probabilistic:
        known.append(probabilistic)
    elif compares_drafting(recipe):
        known.append(at(probabilistic, recipe.num_speculative_tokens))
    if recipe.bench_mtp:
        known.append(Drafter("MTP assistant", {"method": "mtp", "model": recipe.bench_mtp}))
    if recipe.bench_dflash:
        known.append(Drafter("DFlash", {"method": "dflash", "model": recipe.bench_dflash}))
    template = plain_server(recipe)
    return [with_server(arm, template) for arm in multiply(known, recipe.bench_n)]


def compares_drafting(recipe: Recipe) -> bool:
    """Whether the bench shall say how to draft: at temperature 0 both ways are the same."""
    return recipe.draft_sample_method != "greedy" and max(recipe.bench_temperatures) > 0


def at(drafter: Drafter, n: int) -> Drafter:
    """The drafter at one n only."""
    return replace(drafter, config={**drafter.config, "num_speculative_tokens": n})


def bench(ctx: Context, arms: Sequence[Arm] | None = None) -> list[Measurement]:
    """Acceptance and speed of each arm through the chat endpoint; report in the stage's folder.

    Raises:
        StageError: an arm's text is degenerate (exit code 3).
        BenchError: nothing could be measured.
    """
    recipe = ctx.recipe
    drafter = served_drafter(recipe, ctx.run)
    found = bench_arms(recipe, drafter.folder) if arms is None else list(arms)
    setup = Setup(
        body=recipe.body,
        arms=tuple(found),
        prompts=tuple(bench_prompts(recipe)),
        temperatures=recipe.bench_temperatures,
        concurrencies=recipe.bench_concurrency,
        blocks=recipe.bench_blocks,
        max_tokens=recipe.bench_max_tokens,
        seed=recipe.seed,
    )
    made_from = {
        "drafter": drafter.output,
        "body": body_identity(recipe.body),
        "prompts": digest([asdict(p) for p in setup.prompts]),
        "arms": [asdict(arm.spec) for arm in found],
        "settings": setup.settings(),
        "serving": serving_flags(recipe),
    }
    folder = ctx.run.stage_dir("bench")
    with stage(ctx, "bench", made_from) as work:
        if work is None:
            results = load(folder / "results.json")
            summary = summarise(results)
        else:
            # Starting a server takes both cores of a small machine: none may start while another
            # is measured. On a GPU two bodies do not fit side by side: each starts in its turn.
            outcome = run_bench(
                setup, folder, ctx.servers, together=not has_accelerator(),
                progress=work.activity.update,
            )  # fmt: skip
            results, summary = outcome.results, outcome.summary
            for arm in setup.arms:
                if arm.server is not None:
                    ctx.servers.stop(arm.server.name)
            work.finish(output=file_digest(folder / "results.json"))
    if summary["refused"]:
        raise StageError("\n".join(spoken(results, summary)), EXIT_DEGENERATE)
    return measurements(results.requests)


def bench_prompts(recipe: Recipe) -> list[WorkloadPrompt]:
    """The recipe's prompts: a file of the user's, or the first ones of each shipped workload.

    Raises:
        ConfigError: the file cannot be used.
    """
    if recipe.bench_prompts:
        try:
            return load_workload(Path(recipe.bench_prompts))
        except PromptError as e:
            raise ConfigError(f"bench_prompts: {e}") from None
    return first_of_each(load_workloads(), recipe.bench_prompts_each)


def answer_once(server: Endpoint, prompt: WorkloadPrompt, max_tokens: int) -> Reply:
    """One answer at T = 0 of a server that drafts.

    Raises:
        StageError: it answered without drafting.
        BenchError: it did not answer.
    """
    before = server.counters()
    with Client(server.base_url, server.model) as client:
        reply = client.ask(
            prompt.messages, f"prompt {prompt.id}", temperature=0.0, max_tokens=max_tokens
        )
    if not (server.counters() - before).drafts:
        raise StageError(f"The server at {server.base_url} answered without drafting a token.")
    return reply
