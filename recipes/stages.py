"""regenerate -> prepare -> train -> calibrate -> bench -> serve: each resumable, each one command.

Every stage reads the folder that the one before wrote, records in a manifest what it was made
from, and is a no-op when that has not changed.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from recipes import upstream
from recipes.bench_stage import answer_once, bench, bench_prompts
from recipes.calibrate_stage import calibrate, served_drafter
from recipes.config import Recipe
from recipes.drafting_choice import choose
from recipes.extract_stage import Extracted, extract
from recipes.prepare_stage import prepare, prepared
from recipes.process import StageError
from recipes.producing import producing, side_by_side
from recipes.regenerate_stage import regenerate
from recipes.regenerate_stage import server as answering_server
from recipes.run_folder import RunFolder, digest, file_digest, write_atomically
from recipes.server_specs import extraction_server, production_server, store_of
from recipes.spread import torchrun
from recipes.spread.call import EXTRACTION, TRAINERS
from recipes.spread.placement import place
from recipes.stage import (
    Context,
    body_identity,
    extraction_folder,
    require,
    stage,
)
from recipes.vllm_server import Endpoint, ServerSpec, command, installed


def train(ctx: Context) -> None:
    """Upstream's trainer on the body's hidden states. Continues where it stopped."""
    upstream.require_entrypoints()
    recipe = ctx.recipe
    source = require(ctx.run, "prepare")
    made_from = {
        "dataset": source["output"],
        "body": body_identity(recipe.body),
        "draft_start": body_identity(recipe.draft_start),
        **{
            name: getattr(recipe, name)
            for name in (
                "draft_vocab_size",
                "target_layers",
                "seq_len",
                "epochs",
                "optimizer",
                "lr",
                "scheduler",
                "ttt_steps",
                "train_share",
                "best_by",
                "seed",
                "hidden_states",
                "hidden_states_dtype",
                "train_extra",
                "body_layers",
                "dtype",
                "vllm_extra",
            )
        },
        **(
            {
                "drafter_kind": recipe.drafter_kind,
                "mask_token_id": recipe.mask_token_id,
                "num_speculative_tokens": recipe.num_speculative_tokens,
            }
            if recipe.drafter_kind != "eagle3"
            else {}
        ),
        # What more trainers learn is another thing: a step is of so many batches.
        **({"trainers": recipe.trainers, "fsdp": recipe.fsdp} if recipe.trainers > 1 else {}),
    }
    _check_start(recipe)
    _check_trainers(ctx, made_from)
    with stage(ctx, "train", made_from) as work:
        if work is None:
            return
        data = prepared(ctx, source)
        checkpoints = work.folder / "checkpoints"
        hidden_states = extraction_folder(ctx.run)
        hidden_states.mkdir(parents=True, exist_ok=True)
        log = ctx.run.log("train")
        offset = log.stat().st_size if log.exists() else 0

        def show() -> None:
            ctx.servers.check_watched()
            epoch, step = _training_progress(log, offset)
            where = "" if step is None else f"epoch {epoch + 1} of {recipe.epochs}, step {step}"
            died = torchrun.progress(recipe, log, offset)
            note = ", ".join(part for part in (where, died, ctx.servers.status()) if part)
            if note:
                work.activity.update(note)

        def argv(endpoint: str | None, extracted: Extracted | None = None) -> list[str]:
            return upstream.train(
                recipe,
                data=data,
                output=checkpoints,
                logs=work.folder / "logs",
                endpoint=endpoint,
                store=store_of(recipe),
                cached=extracted.folder if extracted is not None else None,
                incomplete=extracted is not None and extracted.missing > 0,
            )

        env = upstream.train_environment(recipe)

        def lease() -> AbstractContextManager[Endpoint]:
            return producing(ctx, servers_of(ctx, "train"))

        if recipe.hidden_states == "offline":
            extracted = extract(ctx, source, data, lease)
            with ctx.wanting(TRAINERS):
                work.command(argv(None, extracted), show, env)
        else:
            with ctx.wanting(EXTRACTION), lease() as server, ctx.wanting(TRAINERS):
                work.command(argv(server.base_url), show, env)
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


def _check_start(recipe: Recipe) -> None:
    """What would be found out only after the training; then nothing is started.

    A local drafter reads the layers that the server will write; the kind can be served here.
    """
    vllm = installed()
    if recipe.drafter_kind == "dspark" and vllm is not None and vllm.cpu:
        raise StageError(
            "train: a dspark drafter cannot be served here: vLLM does that with its V2 model "
            "runner only, which needs a GPU. Take another drafter_kind, or train it on one."
        )
    config = Path(recipe.draft_start) / "config.json"
    if not recipe.draft_start or not config.is_file():
        return
    reads = json.loads(config.read_text("utf-8")).get("eagle_aux_hidden_state_layer_ids")
    if reads is not None and tuple(reads) != recipe.target_layers:
        raise StageError(
            f"train: the drafter {recipe.draft_start} reads the body's layers {tuple(reads)}, but "
            f"target_layers={recipe.target_layers}: --set target_layers={','.join(map(str, reads))}"
        )


def _check_trainers(ctx: Context, made_from: dict[str, Any]) -> None:
    """Trainers that can be placed; and a run begun with another number of them is not given up.

    Raises:
        ConfigError: they can't be placed.
        StageError: too few rows for so many, or the unfinished work has another number.
    """
    recipe = ctx.recipe
    place(recipe)
    rows = int(require(ctx.run, "prepare")["rows"])
    held_out = rows - int(rows * recipe.train_share)
    if 1 < recipe.trainers > held_out:
        raise StageError(
            f"train: {held_out} rows are held out for validation, and each of "
            f"trainers={recipe.trainers} needs at least one: lower train_share or trainers."
        )
    folder = ctx.run.stage_dir("train")
    if ctx.run.manifest("train") or not any((folder / "checkpoints").glob("*/*")):
        return
    begun = json.loads((folder / "made_from.json").read_text("utf-8"))
    before = {name: begun.pop(name, default) for name, default in _OF_ONE_TRAINER.items()}
    now = {name: made_from.get(name, default) for name, default in _OF_ONE_TRAINER.items()}
    same = {name: value for name, value in made_from.items() if name not in _OF_ONE_TRAINER}
    if before != now and digest(begun) == digest(same):
        settings = " ".join(f"--set {name}={value}" for name, value in before.items())
        raise StageError(
            f"train: {folder} holds unfinished work of {before}, which {now} can't go on with, as "
            f"a step would be of other rows: {settings} goes on with it; to begin anew, move that "
            "folder away."
        )


_OF_ONE_TRAINER: dict[str, Any] = {"trainers": 1, "fsdp": False}


def serve(ctx: Context) -> None:
    """Write the production command; start it once and have it answer."""
    recipe = ctx.recipe
    spec = production_spec(recipe, ctx.run)
    ctx.display.line(f"serve: {choose(recipe, ctx.run).reason}")
    drafter = served_drafter(recipe, ctx.run)
    made_from = {"drafter": drafter.output, "command": command(spec)}
    with stage(ctx, "serve", made_from) as work:
        if work is None:
            return
        script = work.folder / "serve.sh"
        write_atomically(script, f"#!/bin/sh\nexec {shlex.join(command(spec))}\n")
        script.chmod(0o755)
        with ctx.servers.lease(spec) as server:
            max_tokens = min(64, recipe.bench_max_tokens)
            answer = answer_once(server, bench_prompts(recipe)[0], max_tokens)
        work.finish(answer=answer.text, script=str(script))
    ctx.display.line(f"serve with: {script}")


def servers_of(ctx: Context, name: str) -> list[ServerSpec]:
    """The servers that a stage before the bench leases (unless the user runs one)."""
    if name == "regenerate":
        return side_by_side(ctx.recipe, answering_server(ctx), ctx.recipe.regenerate_endpoints)
    if name == "train":
        folder = extraction_folder(ctx.run)
        spec = extraction_server(ctx.recipe, folder, ctx.label + "extraction")
        return side_by_side(ctx.recipe, spec, ctx.recipe.train_endpoints)
    return []


def production_spec(recipe: Recipe, run: RunFolder) -> ServerSpec:
    """The production server of this run's drafter, drafting as its bench showed to be faster."""
    return production_server(recipe, served_drafter(recipe, run).folder, choose(recipe, run).method)


STAGES: dict[str, Callable[[Context], object]] = {
    "regenerate": regenerate,
    "prepare": prepare,
    "train": train,
    "calibrate": calibrate,
    "bench": bench,
    "serve": serve,
}


# ---- small readings of what upstream wrote ----


def _training_progress(log: Path, offset: int) -> tuple[int, int | None]:
    """(epoch, global step) of the newest metrics line that upstream logged."""
    try:
        with log.open("rb") as f:
            f.seek(max(offset, log.stat().st_size - 20_000))
            tail = f.read().decode("utf-8", errors="replace")
    except OSError:
        return 0, None
    epochs, steps = re.findall(r"\bepoch=(\d+)", tail), re.findall(r"\bglobal_step=(\d+)", tail)
    return int(epochs[-1]) if epochs else 0, int(steps[-1]) if steps else None


def _validation(drafter: Path) -> dict[str, Any]:
    path = drafter / "val_metrics.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
