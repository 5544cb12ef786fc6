"""`calibrate`: the drafter that is served, the trained one's copy at `head_temperature`.

The trainer's folders stay as they are. With head_temperature=1 they are what is served; with a
number a copy is made (`recipes.scaled_drafter`); with `auto` the body first answers held-out
conversations at serve_temperature, and what vLLM would accept of them decides
(`benchmarks.predict.calibration`). Answers that are there are not asked for again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.predict.answers import Collection, TokenPrompt
from benchmarks.predict.session import BEYOND, Question, collect
from recipes import scaled_drafter
from recipes.config import Recipe
from recipes.process import StageError
from recipes.run_folder import RunFolder, file_digest, write_atomically
from recipes.server_specs import body_layers, plain_server
from recipes.stage import Context, Work, body_identity, require, stage, trained_drafter
from recipes.vllm_server import ServerSpec

STAGE = "calibrate"
AS_SET = "as set (head_temperature)"
# What `auto` depends on besides the drafter, the body and the rows.
_AUTO = ("calibrate_prompts", "draft_sample_method", "train_share", "serve_temperature",
         "num_speculative_tokens", "bench_max_tokens", "bench_max_model_len", "seed", "dtype",
         "vllm_extra")  # fmt: skip


@dataclass(frozen=True)
class Served:
    """The drafter that bench and serve start vLLM with.

    Attributes:
        output: digest of its weights.
        head_temperature: what its logits were divided by.
        reason: why, as a clause.
    """

    folder: Path
    output: str
    head_temperature: float = 1.0
    reason: str = AS_SET

    @property
    def words(self) -> str:
        """For people."""
        if self.head_temperature == 1 and self.reason == AS_SET:
            return "head temperature 1: the drafter as it was trained"
        return f"head temperature {self.head_temperature:g}: {self.reason}"


def served_drafter(recipe: Recipe, run: RunFolder) -> Served:
    """See `Served`.

    Raises:
        StageError: nothing is trained, or head_temperature is not applied to it yet.
    """
    trained = require(run, "train")
    done = run.manifest(STAGE)
    if done and run.is_done(STAGE, made_of(recipe, run)):
        value = float(done.get("head_temperature", 1))
        folder, reason = run.root / str(done["drafter"]), str(done.get("reason", AS_SET))
        return Served(folder, done["output"], value, reason)
    if recipe.head_temperature == 1:
        return Served(trained_drafter(run), trained["output"])
    raise StageError(
        f"head_temperature={recipe.head_temperature} is not applied to the trained drafter yet: "
        f"run `{STAGE}` (or `all`) first."
    )


def changes_nothing(recipe: Recipe) -> str:
    """Why `auto` need not look, as a clause; "" where it must."""
    if recipe.serve_temperature == 0:
        return "at serve_temperature=0 both ways of drafting are the same"
    if recipe.draft_sample_method == "greedy":
        return "the best token stays the best one, and draft_sample_method=greedy"
    return ""


def folder_of(run: RunFolder) -> Path:
    """Where a copy at another temperature is."""
    return run.stage_dir(STAGE) / "drafter"


def servers(recipe: Recipe, run: RunFolder) -> list[ServerSpec]:
    """What the stage starts, for `plan`."""
    if recipe.head_temperature != "auto" or changes_nothing(recipe):
        return []
    layers = (*recipe.target_layers, body_layers(recipe))
    return [
        replace(
            plain_server(recipe, "predict"), extraction_layers=layers,
            extraction_folder=run.stage_dir(STAGE) / "states",
        )
    ]  # fmt: skip


def made_of(recipe: Recipe, run: RunFolder) -> dict[str, Any]:
    """What the served drafter depends on."""
    found: dict[str, Any] = {
        "drafter": require(run, "train")["output"],
        "head_temperature": recipe.head_temperature,
    }
    if recipe.head_temperature != "auto":
        return found
    if quick := changes_nothing(recipe):
        return {**found, "auto": quick}
    return {
        **found,
        "body": body_identity(recipe.body),
        "dataset": require(run, "prepare")["output"],
        **{name: getattr(recipe, name) for name in _AUTO},
    }


def calibrate(ctx: Context) -> None:
    """See the module.

    Raises:
        StageError: the head cannot be divided, or the answers could not be judged.
    """
    recipe, run = ctx.recipe, ctx.run
    made_from = made_of(recipe, run)
    with stage(ctx, STAGE, made_from) as work:
        if work is None:
            ctx.display.line(f"{STAGE}: {served_drafter(recipe, run).words}")
            return
        source = trained_drafter(run)
        told: dict[str, Any] = {"head_temperature": recipe.head_temperature, "reason": AS_SET}
        if recipe.head_temperature == "auto":
            quick = changes_nothing(recipe)
            told = {"head_temperature": 1.0, "reason": quick}
            if not quick:
                question = ask(ctx, work, source)
                judged = work.folder / "calibration.json"
                work.command([
                    sys.executable, "-m", "benchmarks.predict.calibration", "--question",
                    str(question), "--out", str(judged),
                ])  # fmt: skip
                told = json.loads(judged.read_text("utf-8"))
        drafter = source
        if told["head_temperature"] != 1:
            drafter = folder_of(run)
            try:
                scaled_drafter.scale(source, drafter, float(told["head_temperature"]))
            except scaled_drafter.HeadError as e:
                raise StageError(f"{STAGE}: {e}") from None
        work.finish(
            drafter=str(drafter.relative_to(run.root)),
            output=file_digest(drafter / "model.safetensors"),
            **told,
        )
    ctx.display.line(f"{STAGE}: {served_drafter(recipe, run).words}")


def ask(ctx: Context, work: Work, drafter: Path) -> Path:
    """Collects the body's answers to held-out conversations; the file that says what to judge."""
    recipe, folder = ctx.recipe, work.folder
    prompts = heldout(recipe, ctx.run.stage_dir("prepare") / "dataset")
    if not prompts:
        raise StageError(
            f"{STAGE}: no held-out prompt leaves room for an answer of bench_max_tokens="
            f"{recipe.bench_max_tokens} in bench_max_model_len={recipe.bench_max_model_len}."
        )
    question = Question(
        recipe.body, {"trained": str(drafter)}, prompts, (recipe.serve_temperature,),
        depth=recipe.num_speculative_tokens, n=recipe.num_speculative_tokens,
        max_tokens=recipe.bench_max_tokens, seed=recipe.seed,
    )  # fmt: skip
    collection: Collection = collect(
        question, folder, ctx.servers, plain_server(recipe), work.activity.update
    )
    told = {
        "answers": str(collection.folder),
        "wanted": asdict(collection.wanted),
        "drafter": str(drafter),
        "prompts": [p.id for p in prompts],
        "temperature": recipe.serve_temperature,
        "n": recipe.num_speculative_tokens,
        "seed": recipe.seed,
        "or_greedy": recipe.draft_sample_method == "auto",
    }
    path = folder / "question.json"
    write_atomically(path, json.dumps(told, indent=1) + "\n")
    return path


def heldout(recipe: Recipe, dataset: Path) -> list[TokenPrompt]:
    """Prompts of the rows that training validates on, one of each conversation.

    A row's prompt ends where its first trained token begins; rows that leave no room for an answer
    are passed over.
    """
    from datasets import load_from_disk

    from speculators_patches.patches.conversation_split import COLUMN, cut

    data = load_from_disk(str(dataset)).with_format(None)
    place = int(len(data) * recipe.train_share)
    names: Sequence[str] = [str(row) for row in range(len(data))]
    if COLUMN in data.column_names:
        names = data[COLUMN]
        place = cut(names, place) or place
    room = recipe.bench_max_model_len - recipe.bench_max_tokens - BEYOND - 1
    found: dict[str, TokenPrompt] = {}
    for number in range(place, len(data)):
        row, name = data[number], str(names[number])
        mask = list(row["loss_mask"])
        start = mask.index(1) if 1 in mask else 0
        if 0 < start <= room and name not in found:
            found[name] = TokenPrompt(name, "held out", tuple(row["input_ids"][:start]))
        if len(found) == recipe.calibrate_prompts:
            break
    return list(found.values())
