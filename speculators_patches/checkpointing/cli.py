"""`python -m speculators_patches checkpoints {list,verify,prune,export} RUN_DIR`.

`app` is a typer sub-command; it imports torch only to export.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from speculators_patches.checkpointing import names, reading
from speculators_patches.checkpointing.errors import CheckpointError, CorruptError
from speculators_patches.checkpointing.policy import Keep, doomed
from speculators_patches.checkpointing.store import Store

app = typer.Typer(
    no_args_is_help=True, help="List, verify, prune and export the checkpoints of a run."
)

# `module:function` of (checkpoint folder, new output folder) -> None; needs upstream, so it lives
# with the patch.
EXPORTER = "speculators_patches.patches.step_checkpoints:export_checkpoint"

RunDir = Annotated[
    Path, typer.Argument(help="The run's folder, its save path, or the checkpoint folder itself.")
]


def _stop(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    raise typer.Exit(1)


def find_store(run_dir: Path) -> Path:
    """The store in or at most three levels below `run_dir`.

    Raises:
        CheckpointError: none, or more than one.
    """
    if not run_dir.is_dir():
        raise CheckpointError(f"{run_dir} is not a folder")
    if run_dir.name == names.STORE:
        return run_dir
    patterns = ("", "*/", "*/*/", "*/*/*/")
    found = [p for pre in patterns for p in sorted(run_dir.glob(pre + names.STORE)) if p.is_dir()]
    if not found:
        raise CheckpointError(f"{run_dir} holds no checkpoints (no folder named {names.STORE})")
    if len(found) > 1:
        raise CheckpointError(
            f"{run_dir} holds {len(found)} sets of checkpoints; name one: "
            + ", ".join(str(path) for path in found)
        )
    return found[0]


def _store(run_dir: Path) -> Path:
    try:
        return find_store(run_dir)
    except CheckpointError as error:
        _stop(str(error))


def _row(record: reading.Record) -> dict[str, object]:
    manifest = record.manifest
    return {
        "name": record.name,
        "step": record.step,
        "tags": list(record.tags),
        "created": manifest.created if manifest else "",
        "megabytes": round(manifest.size / 1e6, 1) if manifest else None,
        "ranks": manifest.world_size if manifest else None,
        "state": record.problem or "committed",
    }


@app.command("list")
def list_(
    run_dir: RunDir,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what is there, newest first (names and sizes; `verify` reads the data)."""
    root = _store(run_dir)
    rows = [_row(record) for record in reading.records(root)]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    table = Table(title=str(root))
    table.add_column("name", no_wrap=True)
    for column in ("tags", "created (UTC)", "MB", "ranks", "state"):
        table.add_column(column, overflow="fold")
    for row in rows:
        megabytes, ranks = (
            "" if row[key] is None else str(row[key]) for key in ("megabytes", "ranks")
        )
        tags = ", ".join(map(str, row["tags"])) if isinstance(row["tags"], list) else ""
        table.add_row(
            str(row["name"]), tags, str(row["created"]), megabytes, ranks, str(row["state"])
        )
    Console().print(table)


@app.command()
def verify(run_dir: RunDir) -> None:
    """Read every byte of every checkpoint; exit 1 if one is not as it was written."""
    found = reading.records(_store(run_dir))
    bad = 0
    for record in found:
        try:
            reading.verify(record)
            print(f"{record.name}: whole")
        except CorruptError as error:
            bad += 1
            print(str(error))
    print(f"{len(found) - bad} of {len(found)} checkpoints are whole")
    if bad or not found:
        raise typer.Exit(1)


@app.command()
def prune(
    run_dir: RunDir,
    keep: Annotated[int, typer.Option(help="How many of the newest to keep.")] = 3,
    keep_every: Annotated[
        int | None, typer.Option(help="Also keep the first one of every so many steps.")
    ] = None,
    drop_best: Annotated[bool, typer.Option(help="Do not keep the best one.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
) -> None:
    """Remove older checkpoints, and what dead processes left half written."""
    root = _store(run_dir)
    try:
        rule = Keep(last=keep, best=not drop_best, every_steps=keep_every)
        if dry_run:
            for name in doomed(reading.records(root), rule):
                print(f"would remove {name}")
            return
        with Store(root) as store:
            swept, left = store.sweep()
            removed, refused = store.prune(doomed(store.records(), rule))
    except (CheckpointError, ValueError, OSError) as error:
        _stop(str(error))
    for name in [*swept, *removed]:
        print(f"removed {name}")
    for sentence in [*left, *refused]:
        print(sentence)


@app.command()
def export(
    run_dir: RunDir,
    output: Annotated[Path, typer.Argument(help="New folder for the upstream-format drafter.")],
    checkpoint: Annotated[
        str, typer.Option(help="'newest', or a name or tag (best, final) from `list`.")
    ] = "newest",
) -> None:
    """Write a checkpoint as a folder that vLLM and upstream's from_pretrained load."""
    root = _store(run_dir)
    if output.exists():
        _stop(f"{output} already exists; name a folder that does not")
    try:
        record = choose(root, checkpoint)
        module, _, function = EXPORTER.partition(":")
        exporter: Callable[[Path, Path], None] = getattr(importlib.import_module(module), function)
        exporter(record.path, output)
    except CheckpointError as error:
        _stop(str(error))
    except (ImportError, AttributeError) as error:
        _stop(f"exporting needs upstream speculators, which does not load here ({error})")
    print(f"{record.name} exported to {output}")


def choose(root: Path, wanted: str) -> reading.Record:
    """The checkpoint that `wanted` ("newest", a name, or a tag: the newest with it) means.

    Raises:
        CheckpointError: there is none, or it is not whole.
    """
    if wanted == "newest":
        record, _ = reading.newest(root)
        if record is None:
            raise CheckpointError(f"{root} holds no whole checkpoint")
        return record
    fits = [r for r in reading.records(root) if wanted in (r.name, *r.tags)]
    if not fits:
        raise CheckpointError(f"{root} holds no checkpoint {wanted!r}; see `checkpoints list`")
    reading.verify(fits[0])
    return fits[0]
