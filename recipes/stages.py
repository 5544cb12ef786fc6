"""regenerate -> prepare -> train -> bench -> serve: each resumable, each one command.

Every stage reads the folder that the one before wrote, records in a manifest what it was made
from, and is a no-op when that has not changed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.acceptance import Measurement, Prompt, load_prompts, measure
from recipes import upstream
from recipes.config import Recipe
from recipes.display import Activity, Display
from recipes.process import StageError, run_command
from recipes.run_folder import RunFolder, digest, file_digest, write_atomically
from recipes.servers import ServerPool
from recipes.server_specs import (
    drafting_server,
    extraction_server,
    plain_server,
    production_server,
    serving_flags,
)
from recipes.vllm_server import ServerSpec, command

SMOKE_PROMPTS = Path(__file__).parent.parent / "benchmarks" / "workloads" / "smoke.jsonl"


@dataclass
class Context:
    """What the stages of one run share."""

    recipe: Recipe
    run: RunFolder
    display: Display
    servers: ServerPool
    # Checks that an answer is readable text; the miniature knows its own vocabulary.
    expected: dict[str, float] = field(default_factory=dict)


# ---- stages --------------------------------------------------------------------------------------


@contextmanager
def _stage(ctx: Context, name: str, made_from: dict[str, Any]) -> Iterator[_Work | None]:
    """Yields None when the stage is done already; else its work, which must call `finish`."""
    if ctx.run.is_done(name, made_from):
        ctx.display.line(f"{name}: already done from the same inputs, nothing to do")
        yield None
        return
    folder = ctx.run.begin(name, made_from)
    with ctx.display.activity(name, ctx.expected.get(name)) as activity:
        yield _Work(ctx, name, made_from, folder, activity, time.monotonic())


@dataclass
class _Work:
    ctx: Context
    name: str
    made_from: dict[str, Any]
    folder: Path
    activity: Activity
    start: float

    def finish(self, **results: Any) -> None:
        self.ctx.run.finish(self.name, self.made_from, time.monotonic() - self.start, **results)

    def command(self, argv: list[str], watch: Callable[[], None] | None = None) -> None:
        run_command(self.ctx.run, self.name, argv, watch=watch)


def regenerate(ctx: Context) -> None:
    """The body answers the prompts itself, so that the drafter learns what the body really says."""
    upstream.require_entrypoints()
    recipe = ctx.recipe
    prompts = Path(recipe.prompts)
    made_from = {
        "body": body_identity(recipe.body),
        "prompts": file_digest(prompts) if prompts.is_file() else recipe.prompts,
        "samples": recipe.samples,
        "max_tokens": recipe.regenerate_max_tokens,
        "sampling": recipe.regenerate_sampling,
    }
    with _stage(ctx, "regenerate", made_from) as work:
        if work is None:
            return
        outfile = work.folder / "responses.jsonl"
        errors = work.folder / "responses.errors.jsonl"
        _drop_torn_tail(outfile)
        errors.unlink(missing_ok=True)  # this attempt's errors decide; the failed are asked again
        # Upstream's --limit counts the rows still to do, not the ones that --resume skips.
        missing = recipe.samples - len(_answered_ids(outfile))

        def show() -> None:
            answered = _count_lines(outfile)
            work.activity.update(
                f"{answered} of {recipe.samples} prompts answered", answered / recipe.samples
            )

        if missing > 0:
            with ctx.servers.lease(plain_server(recipe), recipe.regenerate_endpoint) as server:
                work.command(
                    upstream.regenerate(
                        recipe, endpoint=server.base_url, outfile=outfile, limit=missing
                    ),
                    show,
                )
        rows = [json.loads(line) for line in outfile.read_text("utf-8").splitlines()]
        failed = _count_lines(errors)
        answered = len(_answered_ids(outfile))
        # Upstream exits 0 even when every request failed (FAQ: a dead server looks like success).
        if failed > recipe.regenerate_error_share * max(1, answered + failed):
            raise StageError(
                f"regenerate: {failed} of {answered + failed} prompts failed, more than "
                f"regenerate_error_share={recipe.regenerate_error_share}; the reasons are in "
                f"{errors}. Mend the cause and run regenerate again: the answered ones are kept."
            )
        if not rows:
            raise StageError(
                f"regenerate: the body answered nothing; see {ctx.run.log('regenerate')}."
            )
        lengths = sorted(sum(row["loss_mask"]) for row in rows)
        work.finish(
            answered=answered,
            failed=failed,
            rows=len(rows),
            output=file_digest(outfile),
            answer_tokens={
                "total": sum(lengths),
                "median": lengths[len(lengths) // 2],
                "longest": lengths[-1],
            },
            cut_at_limit=sum(r["metadata"].get("finish_reason") == "length" for r in rows),
        )


def prepare(ctx: Context) -> None:
    """Answers -> packed training rows and token frequencies. Needs no server."""
    upstream.require_entrypoints()
    recipe = ctx.recipe
    source = _require(ctx.run, "regenerate")
    made_from = {
        "responses": source["output"],
        "body": body_identity(recipe.body),
        "seq_len": recipe.seq_len,
        "minimum_valid_tokens": recipe.minimum_valid_tokens,
        "seed": recipe.seed,
    }
    with _stage(ctx, "prepare", made_from) as work:
        if work is None:
            return
        # Upstream takes any .arrow file for a finished data set, so it works in a staging folder.
        staging, final = work.folder / "dataset.staging", work.folder / "dataset"
        shutil.rmtree(staging, ignore_errors=True)
        responses = ctx.run.stage_dir("regenerate") / "responses.jsonl"
        work.command(upstream.prepare(recipe, responses=responses, output=staging))
        rows = _dataset_rows(staging)
        if not (staging / "token_freq.pt").exists():
            raise StageError(f"prepare: upstream wrote no token frequencies into {staging}.")
        dropped = int(source["rows"]) - rows
        if dropped > 0.02 * int(source["rows"]):
            raise StageError(
                f"prepare: {dropped} of {source['rows']} rows were dropped; the reasons are in "
                f"{ctx.run.log('prepare')}."
            )
        staging.rename(final)
        work.finish(rows=rows, dropped=dropped, output=file_digest(final))


def train(ctx: Context) -> None:
    """Upstream's trainer on the body's hidden states. Continues where it stopped."""
    upstream.require_entrypoints()
    recipe = ctx.recipe
    source = _require(ctx.run, "prepare")
    made_from = {
        "dataset": source["output"],
        "body": body_identity(recipe.body),
        "draft_start": body_identity(recipe.draft_start),
        **{
            name: getattr(recipe, name)
            for name in (
                "draft_vocab_size target_layers seq_len epochs optimizer lr scheduler ttt_steps "
                "train_share seed hidden_states train_extra"
            ).split()
        },
    }
    with _stage(ctx, "train", made_from) as work:
        if work is None:
            return
        data = ctx.run.stage_dir("prepare") / "dataset"
        checkpoints = work.folder / "checkpoints"
        hidden_states = extraction_folder(ctx.run)
        hidden_states.mkdir(parents=True, exist_ok=True)
        log = ctx.run.log("train")
        offset = log.stat().st_size if log.exists() else 0

        def show() -> None:
            epoch, step = _training_progress(log, offset)
            if step is not None:
                work.activity.update(f"epoch {epoch + 1} of {recipe.epochs}, step {step}")

        def argv(endpoint: str | None) -> list[str]:
            return upstream.train(
                recipe,
                data=data,
                output=checkpoints,
                logs=work.folder / "logs",
                endpoint=endpoint,
            )

        def lease() -> Any:
            return ctx.servers.lease(
                extraction_server(recipe, hidden_states), recipe.train_endpoint
            )

        if recipe.hidden_states == "offline":
            cached = data / "hidden_states"
            if len(list(cached.glob("hs_*.safetensors"))) < int(source["rows"]):
                with lease() as server:
                    work.command(
                        upstream.extract_offline(
                            recipe, endpoint=server.base_url, data=data, output=cached
                        )
                    )
            work.command(argv(None), show)
        else:
            with lease() as server:
                work.command(argv(server.base_url), show)
        if not upstream.is_finished(checkpoints, recipe.epochs):
            raise StageError(
                f"train: upstream ended without finishing epoch {recipe.epochs} "
                f"(see {log}). Run train again to continue from its last checkpoint."
            )
        drafter = upstream.newest_drafter(checkpoints)
        work.finish(
            drafter=str(drafter.relative_to(ctx.run.root)),
            output=file_digest(drafter / "model.safetensors"),
            validation=_validation(drafter),
        )


def bench(ctx: Context) -> list[Measurement]:
    """Acceptance and tok/s for each n, through the chat endpoint, one server after the other."""
    recipe = ctx.recipe
    drafter = trained_drafter(ctx.run)
    prompts = bench_prompts(recipe)
    made_from = {
        "drafter": _require(ctx.run, "train")["output"],
        "body": body_identity(recipe.body),
        "prompts": digest([(p.id, p.kind, p.messages) for p in prompts]),
        "n": recipe.bench_n,
        "temperatures": recipe.bench_temperatures,
        "max_tokens": recipe.bench_max_tokens,
        "serving": serving_flags(recipe),
    }
    results_file = ctx.run.stage_dir("bench") / "measurements.json"
    with _stage(ctx, "bench", made_from) as work:
        if work is None:
            return read_measurements(results_file)
        measured: list[Measurement] = []
        for n in recipe.bench_n:
            spec = (
                plain_server(recipe)
                if n == 0
                else drafting_server(recipe, drafter, n, f"bench-n{n}")
            )
            measured += measure_arm(
                ctx,
                work.activity,
                spec,
                prompts,
                arm="no speculation" if n == 0 else "drafter",
                n=n,
            )
        write_atomically(results_file, json.dumps([m.to_json() for m in measured], indent=1))
        work.finish(output=file_digest(results_file))
    return measured


def measure_arm(
    ctx: Context,
    activity: Activity,
    spec: ServerSpec,
    prompts: list[Prompt],
    *,
    arm: str,
    n: int,
) -> list[Measurement]:
    """All kinds and temperatures of one server."""
    measured: list[Measurement] = []
    with ctx.servers.lease(spec) as server:
        for temperature in ctx.recipe.bench_temperatures:

            def show(done: int, total: int, temperature: float = temperature) -> None:
                activity.update(f"{arm}, n = {n}, T = {temperature}: {done} of {total} prompts")

            measured += measure(
                server.base_url,
                server.model,
                prompts,
                arm=arm,
                n=n,
                temperature=temperature,
                max_tokens=ctx.recipe.bench_max_tokens,
                progress=show,
            )
    return measured


def read_measurements(path: Path) -> list[Measurement]:
    rows = json.loads(path.read_text("utf-8"))
    return [Measurement.from_json(row) for row in rows]


def serve(ctx: Context) -> None:
    """Write the production command; start it once and have it answer, so that it is known to run."""
    recipe = ctx.recipe
    spec = production_spec(recipe, ctx.run)
    made_from = {"drafter": _require(ctx.run, "train")["output"], "command": command(spec)}
    with _stage(ctx, "serve", made_from) as work:
        if work is None:
            return
        script = work.folder / "serve.sh"
        write_atomically(script, f"#!/bin/sh\nexec {shlex.join(command(spec))}\n")
        script.chmod(0o755)
        with ctx.servers.lease(spec) as server:
            answer = measure(
                server.base_url,
                server.model,
                bench_prompts(recipe)[:1],
                arm="serve",
                n=recipe.num_speculative_tokens,
                temperature=0.0,
                max_tokens=min(64, recipe.bench_max_tokens),
            )[0]
        work.finish(answer=answer.answers[0].text, script=str(script))
    ctx.display.line(f"serve with: {script}")


def production_spec(recipe: Recipe, run: RunFolder) -> ServerSpec:
    """The production server of this run's drafter."""
    return production_server(recipe, trained_drafter(run))


STAGES: dict[str, Callable[[Context], object]] = {
    "regenerate": regenerate,
    "prepare": prepare,
    "train": train,
    "bench": bench,
    "serve": serve,
}


# ---- what the stages know of each other's folders ------------------------------------------------


def trained_drafter(run: RunFolder) -> Path:
    """The folder of the drafter that `train` finished."""
    return run.root / str(_require(run, "train")["drafter"])


def bench_prompts(recipe: Recipe) -> list[Prompt]:
    return load_prompts(Path(recipe.bench_prompts) if recipe.bench_prompts else SMOKE_PROMPTS)


def extraction_folder(run: RunFolder) -> Path:
    """Where vLLM leaves hidden states for the trainer; emptied by the trainer as it reads."""
    return run.stage_dir("hidden_states")


def body_identity(name: str) -> str:
    """A hub id stands for itself; a local folder for the bytes of its weights and configuration."""
    folder = Path(name)
    if not name or not folder.is_dir():
        return name
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    return digest([(f.name, file_digest(f)) for f in files])


def _require(run: RunFolder, stage: str) -> dict[str, Any]:
    manifest = run.manifest(stage)
    if not manifest:
        raise StageError(
            f"{run.stage_dir(stage)} holds no finished `{stage}`: run `{stage}` (or `all`) first."
        )
    return manifest


def _drop_torn_tail(path: Path) -> None:
    """Cut a last line without newline: a killed writer's, and upstream would glue the next to it."""
    if not path.exists():
        return
    with path.open("rb+") as f:
        data = f.read()
        keep = data.rfind(b"\n") + 1
        if keep != len(data):
            f.truncate(keep)


def _answered_ids(path: Path) -> set[str]:
    if not path.exists():
        return set()
    with path.open(encoding="utf-8") as f:
        return {json.loads(line)["primary_id"] for line in f}


def _count_lines(path: Path) -> int:
    try:
        with path.open("rb") as f:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: f.read(1 << 20), b""))
    except OSError:
        return 0


def _dataset_rows(folder: Path) -> int:
    from datasets import load_from_disk

    return len(load_from_disk(str(folder)))


def _training_progress(log: Path, offset: int) -> tuple[int, int | None]:
    """(epoch, global step) of the newest metrics line that upstream logged."""
    try:
        with log.open("rb") as f:
            f.seek(max(offset, log.stat().st_size - 20_000))
            tail = f.read().decode("utf-8", errors="replace")
    except OSError:
        return 0, None
    epoch, step = 0, None
    for part in tail.split("'epoch': ")[1:]:
        number = part.split(",")[0].strip(" }\n")
        if number.isdigit():
            epoch = int(number)
    for part in tail.split("'global_step': ")[1:]:
        number = part.split(",")[0].strip(" }\n")
        if number.isdigit():
            step = int(number)
    return epoch, step


def _validation(drafter: Path) -> dict[str, Any]:
    path = drafter / "val_metrics.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
