"""`prepare`: answers -> packed training rows and token frequencies. Needs no server.

Upstream writes into a staging folder, since it takes any `.arrow` file for a finished data set. The
folder is published by one rename, after everything in it has reached the disk.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import coverage, upstream
from recipes.coverage import Coverage
from recipes.process import StageError
from recipes.run_folder import file_digest, fsync_tree, rename_durably
from recipes.stage import Context, body_identity, require, stage

SETTINGS = ("seq_len", "minimum_valid_tokens", "seed")
FREQUENCIES = "token_freq.pt"
# Upstream's trainer keeps the draft vocabulary it has built beside the data.
KEPT_BY_THE_TRAINER = "[dt]2[dt]-*.npy"


@dataclass(frozen=True)
class Expected:
    """What should come out of a responses file.

    Attributes:
        rows: answers in it.
        too_short: those that `minimum_valid_tokens` drops on purpose.
        conversations: conversations in it.
    """

    rows: int
    too_short: int
    conversations: int


def prepare(ctx: Context) -> None:
    """Rows and frequencies into `dataset`.

    Raises:
        StageError: the answers are not those that regenerate finished; too many were dropped; or
            token frequencies or conversations are missing.
    """
    upstream.require_entrypoints()
    recipe = ctx.recipe
    source = require(ctx.run, "regenerate")
    made_from: dict[str, Any] = {
        "responses": source["output"],
        "body": body_identity(recipe.body),
        **{name: getattr(recipe, name) for name in SETTINGS},
    }
    with stage(ctx, "prepare", made_from) as work:
        if work is None:
            return
        responses = ctx.run.stage_dir("regenerate") / "responses.jsonl"
        if not responses.is_file() or file_digest(responses) != source["output"]:
            raise StageError(
                f"prepare: {responses} is not the file that regenerate finished; remove "
                f"{ctx.run.stage_dir('regenerate') / 'manifest.json'} and run regenerate again "
                "(it keeps the answers that are there)."
            )
        staging, final = work.folder / "dataset.staging", work.folder / "dataset"
        if not final.exists():  # else only the manifest is missing
            shutil.rmtree(staging, ignore_errors=True)
            work.command(upstream.prepare(recipe, responses=responses, output=staging))
            _check(ctx, staging, expected(responses, recipe.seq_len, recipe.minimum_valid_tokens))
            fsync_tree(staging)
            rename_durably(staging, final)
        rows, conversations = read(final)
        want = expected(responses, recipe.seq_len, recipe.minimum_valid_tokens)
        covered = _coverage(ctx, final)
        work.finish(
            coverage=[one.to_json() for one in covered],
            rows=rows,
            dropped=want.rows - want.too_short - rows,
            too_short=want.too_short,
            conversations=conversations,
            output=file_digest(final, KEPT_BY_THE_TRAINER),
        )
        ctx.display.line(
            f"prepare: {rows} of {want.rows} answers kept, {want.rows - want.too_short - rows} "
            f"dropped, {want.too_short} shorter than minimum_valid_tokens"
        )


def prepared(ctx: Context, source: Mapping[str, Any]) -> Path:
    """The folder of the data set that `prepare` finished, still as it left it.

    Args:
        source: its manifest.

    Raises:
        StageError: a file in it has changed.
    """
    data = ctx.run.stage_dir("prepare") / "dataset"
    if not data.is_dir() or file_digest(data, KEPT_BY_THE_TRAINER) != source["output"]:
        raise StageError(
            f"train: {data} is not the data set that prepare finished; remove {data.parent} and "
            "run prepare again (it takes minutes and no server)."
        )
    return data


def _coverage(ctx: Context, folder: Path) -> list[Coverage]:
    """What the drafter can say of each kind of text, told and returned; it never ends the stage."""
    try:
        found = coverage.of_run(ctx.recipe, folder / FREQUENCIES)
    except (OSError, ValueError) as e:
        reason = str(e).partition("\n")[0]
        ctx.display.line(f"prepare: coverage of the draft vocabulary is not known: {reason}")
        return []
    for line in coverage.lines(found, ctx.recipe):
        ctx.display.line(line)
    return found


def _check(ctx: Context, staging: Path, want: Expected) -> None:
    rows, conversations = read(staging)
    dropped = want.rows - want.too_short - rows
    limit = ctx.recipe.prepare_drop_share
    if dropped > limit * want.rows:
        raise StageError(
            f"prepare: {dropped} of {want.rows} answers were dropped, more than "
            f"prepare_drop_share={limit}; the reasons are in {ctx.run.log('prepare')}. A longer "
            "seq_len keeps answers whose prompt alone fills it."
        )
    if not rows:
        raise StageError(f"prepare: no answer was left; see {ctx.run.log('prepare')}.")
    if not (staging / FREQUENCIES).exists():
        raise StageError(f"prepare: upstream wrote no token frequencies into {staging}.")
    if conversations is None:
        raise StageError(
            f"prepare: {staging} does not say which conversation a row is from, so that training "
            "and validation could share them; is the patch conversation_split skipped?"
        )


def expected(responses: Path, seq_len: int, minimum: int | None) -> Expected:
    """Counts over a responses file, by upstream's rules for `minimum_valid_tokens`."""
    rows = too_short = 0
    conversations: set[str] = set()
    with responses.open("rb") as file:
        for line in file:
            row = json.loads(line)
            rows += 1
            conversations.add(str(row["primary_id"]))
            valid = sum(row["loss_mask"][:seq_len])
            too_short += minimum is not None and 0 < valid < minimum
    return Expected(rows, too_short, len(conversations))


def read(folder: Path) -> tuple[int, int | None]:
    """Rows and conversations of a prepared folder; None where it names no conversations."""
    from datasets import load_from_disk

    data = load_from_disk(str(folder))
    if "conversation" not in data.column_names:
        return len(data), None
    return len(data), len(set(data.with_format(None)["conversation"]))
