"""Command line: status | run | export | checkpoints | upstream-table | fingerprint.

python -m speculators_patches status
python -m speculators_patches run --module speculators.train -- --data-path data
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from speculators_patches import launcher
from speculators_patches.checkpointing import cli as checkpoints
from speculators_patches.export.command import export

app = typer.Typer(
    help="Patches for vllm-project/speculators.",
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

app.add_typer(checkpoints.app, name="checkpoints")
app.command()(export)

_to_run: list[Callable[[], None]] = []

_Names = Annotated[
    list[str] | None, typer.Option(metavar="NAME[,NAME]", help="Patches, by name; repeatable.")
]


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    allow_drift: _Names = None,
) -> None:
    """Each patch's verdict for the installed upstream. Exit 1: one is needed and does not fit."""
    from speculators_patches import overlay, report_table

    try:
        report = overlay.status(_split(allow_drift) or ())
    except overlay.UnknownPatch as error:
        launcher.fail(str(error))
    if "speculators" not in report.versions:
        launcher.fail("speculators is not installed for this Python; pip install speculators")
    print(report.to_json()) if as_json else report_table.show(report)
    raise typer.Exit(1 if report.refused else 0)


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    args: Annotated[list[str] | None, typer.Argument(metavar="[SCRIPT.py] -- [ARGS]...")] = None,
    module: Annotated[str | None, typer.Option(metavar="M", help="Run a module.")] = None,
    only: _Names = None,
    skip: _Names = None,
    allow_drift: _Names = None,
) -> None:
    """Runs a module or script with patches in force, as __main__, with its exit code."""
    words = list(args or ())
    script = None
    if module is None:
        if not words:
            launcher.fail("run: give --module M or a SCRIPT.py")
        script = words.pop(0)
        if words[:1] == ["--"]:
            del words[0]
    program = launcher.Program(module=module, script=script, args=tuple(words))
    chosen = _split(only)
    # An empty name is how to ask for none.
    if any(only or ()) and not set(chosen or ()) - set(_split(skip) or ()):
        launcher.fail("run: --only and --skip leave no patch; leave both out to apply all of them")
    _to_run.append(
        partial(
            launcher.run_patched, program, chosen, _split(skip) or (), _split(allow_drift) or ()
        )
    )


@app.command("upstream-table")
def upstream_table(
    write: Annotated[
        Path | None, typer.Option(metavar="UPSTREAM.md", help="Update a file.")
    ] = None,
) -> None:
    """The table of UPSTREAM.md, from the records."""
    from speculators_patches import upstream_table as table

    if write is None:
        print(table.render(), end="")
    elif not table.update(write):
        launcher.fail(f"{write} has no line {table.BEGIN} followed by {table.END}")


@app.command()
def fingerprint(
    target: Annotated[str, typer.Argument(metavar="MODULE:QUALNAME")],
) -> None:
    """A target's fingerprint and signature in the installed upstream, for a new patch's record."""
    from speculators_patches import drift

    module, _, qualname = target.partition(":")
    file = drift.module_file(module)
    found = drift.definitions(file, qualname) if file else []
    for item in found:
        print(item.fingerprint, item.signature)
    if not found:
        launcher.fail(f"{target} is not defined in the installed upstream")


def main() -> None:
    """Entry point of `python -m speculators_patches` and of the `speculators-patches` script."""
    try:
        app()
    except SystemExit as done:
        if done.code or not _to_run:
            raise
    # Only now that the command line library has returned: it would turn the program's Ctrl+C and
    # broken pipes into messages and exit codes of its own.
    _to_run.pop()()


def _split(names: list[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(part.strip() for name in names for part in name.split(",") if part.strip())


if __name__ == "__main__":
    main()
