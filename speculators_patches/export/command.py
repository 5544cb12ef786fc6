"""`python -m speculators_patches export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from speculators_patches.export import exporting, known, spec
from speculators_patches.export.exporting import Outcome
from speculators_patches.export.problems import ExportError
from speculators_patches.export.scratch import Author
from speculators_patches.export.tree import Tree, dirty, find
from speculators_patches.launcher import fail


def export(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every patch there is.")] = False,
    tree: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A clean checkout or unpacked source of upstream."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the patches and texts go.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Show each defect before and its absence after; run tests."),
    ] = False,
    allow_drift: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Accept source that was never checked; repeatable."),
    ] = None,
    tree_version: Annotated[
        str | None, typer.Option(metavar="V", help="The tree's version, if it does not say.")
    ] = None,
    author: Annotated[
        str | None, typer.Option(metavar="'Name <mail>'", help="Default: git's settings.")
    ] = None,
    signoff: Annotated[bool, typer.Option("--signoff", help="Add a Signed-off-by line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
    record: Annotated[bool, typer.Option("--record", hidden=True)] = False,
) -> None:
    """Patches as pull requests to upstream: git patches, tests, texts. Exit 1: one did not fit."""
    if tree is None or out is None:
        fail("export: --tree DIR and --out DIR are needed")
    specs = spec.table()
    if bool(names) == everything:
        fail(f"export: give names or --all; there are {', '.join(specs)}")
    unknown = [name for name in [*(names or ()), *(allow_drift or ())] if name not in specs]
    if unknown:
        fail(f"export: no exported patch named {', '.join(unknown)}; there are {', '.join(specs)}")
    outcomes = []
    try:
        who = Author.of(author, signoff)
        trees = _trees(tree, tree_version, everything, names or [])
        for name in names or list(specs):
            found = trees.get(specs[name].package)
            if found is None:
                continue  # --all of one package's tree
            outcome = exporting.export(
                specs[name],
                found,
                out,
                author=who,
                check=check,
                allow_drift=name in (allow_drift or ()) or record,
                say=lambda text: typer.echo(f"  {text} ...", err=True),
            )
            outcomes.append(outcome)
            if record and check and outcome.verdict == "exported":
                known.record(specs[name], found)
            if not as_json:
                _show(outcome)
    except ExportError as error:
        fail(f"export: {error}")
    if as_json:
        typer.echo(json.dumps([item.to_json() for item in outcomes], indent=1))
    raise typer.Exit(0 if all(item.is_good for item in outcomes) else 1)


def _trees(
    folder: Path, version: str | None, everything: bool, names: list[str]
) -> dict[str, Tree]:
    """Package -> its tree in `folder`, of the packages that are asked for."""
    specs = spec.table()
    wanted = sorted({specs[name].package for name in names or specs})
    found: dict[str, Tree] = {}
    for package in wanted:
        try:
            found[package] = find(folder, package, version)
        except ExportError:
            if not everything or (package == wanted[-1] and not found):
                raise
    for item in found.values():
        changed = dirty(item)
        if changed:
            raise ExportError(
                f"--tree {folder} is no clean checkout: {', '.join(changed[:3])} changed; commit "
                "or stash that, so that the patches fit what upstream has"
            )
    return found


def _show(outcome: Outcome) -> None:
    typer.echo(f"{outcome.name}: {outcome.verdict}: {outcome.reason}")
    for check in outcome.checks:
        typer.echo(f"    before: {check.before.words}")
        typer.echo(f"    after:  {check.after.words}")
        before, after = check.tests_before, check.tests_after
        typer.echo(
            f"    tests:  {before.failed} of {before.failed + before.passed} fail before; "
            f"{after.passed} pass and {after.failed} fail after; ruff: {check.lint or 'not asked'}"
        )
