"""Hidden states of every row into files, before training (`hidden_states=offline`).

A part of `train` with a folder and a manifest of its own: what was extracted depends on the body
and on its layers, and training with other learning rates needs no second extraction. Upstream's
command does the asking, with the patch `durable_extraction`: it waits for a server that is being
replaced, and whatever ended it, the same command goes on with the rows that are missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes import upstream
from recipes.config import Recipe
from recipes.process import StageError
from recipes.run_folder import RunFolder
from recipes.spread.call import EXTRACTION
from recipes.stage import Context, body_identity, stage
from recipes.vllm_server import Endpoint

STAGE = "extract"
_LOOK_EVERY_S = 2.0  # at a folder of tens of thousands of files
# What the hidden states depend on, besides the body and the rows.
SETTINGS = ("target_layers", "body_layers", "dtype", "vllm_extra")


@dataclass(frozen=True)
class Extracted:
    """Files `hs_<row>.safetensors` in `folder`, and how many rows have none."""

    folder: Path
    missing: int


def folder_of(run: RunFolder) -> Path:
    return run.stage_dir(STAGE) / "hidden_states"


def extracted(run: RunFolder) -> Extracted:
    """What the finished stage left, or will leave where nothing is missing."""
    return Extracted(folder_of(run), int(run.manifest(STAGE).get("missing", 0)))


def made_of(recipe: Recipe, source: dict[str, Any]) -> dict[str, Any]:
    """What the files depend on; `source` is `prepare`'s manifest."""
    return {
        "dataset": source["output"],
        "body": body_identity(recipe.body),
        **{name: getattr(recipe, name) for name in SETTINGS},
    }


def extract(
    ctx: Context,
    source: dict[str, Any],
    data: Path,
    lease: Callable[[], AbstractContextManager[Endpoint]],
) -> Extracted:
    """Every row's hidden states; a no-op where they are there.

    Args:
        source: `prepare`'s manifest.
        data: the prepared rows.
        lease: gives the watched server, which is started only if it is needed.

    Raises:
        StageError: upstream's command failed, or too many rows have none.
    """
    recipe, rows = ctx.recipe, int(source["rows"])
    made_from = made_of(recipe, source)
    folder = folder_of(ctx.run)
    done = ctx.run.manifest(STAGE)
    if done and ctx.run.is_done(STAGE, made_from) and len(_files(folder)) < int(done["files"]):
        ctx.display.line(f"{STAGE}: files are gone from {folder}; they are made again")
        (ctx.run.stage_dir(STAGE) / "manifest.json").unlink()
    with stage(ctx, STAGE, made_from) as work:
        if work is not None:
            folder.mkdir(exist_ok=True)
            began, before = time.monotonic(), len(_files(folder))
            looked, have = began, before

            def show() -> None:
                nonlocal looked, have
                ctx.servers.check_watched()
                if time.monotonic() - looked >= _LOOK_EVERY_S:
                    looked, have = time.monotonic(), len(_files(folder))
                rate = (have - before) / max(time.monotonic() - began, 1e-9)
                left = f", about {(rows - have) / rate / 60:.0f} min left" if rate else ""
                status = ctx.servers.status()
                note = f"{have} of {rows} rows{left}{', ' if status else ''}{status}"
                work.activity.update(note, have / max(1, rows))

            with ctx.wanting(EXTRACTION), lease() as server:
                work.command(
                    upstream.extract_offline(
                        recipe, endpoint=server.base_url, data=data, output=folder
                    ),
                    show,
                    upstream.extraction_environment(recipe),
                )
            have = len(_files(folder))
            # The patch judges this too; an upstream that it no longer fits leaves rows out.
            if rows - have > upstream.LOST_SHARE * rows:
                raise StageError(
                    f"{STAGE}: {rows - have} of {rows} rows have no hidden states; the reasons are "
                    f"in {ctx.run.log(STAGE)}. Mend the cause and run train again: what is there "
                    "is kept."
                )
            if have < rows:
                ctx.display.line(
                    f"{STAGE}: {rows - have} of {rows} rows have no hidden states and are not "
                    f"trained on; {ctx.run.log(STAGE)} names them"
                )
            work.finish(files=have, missing=rows - have)
    return extracted(ctx.run)


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("hs_*.safetensors"))
