"""For `speculators/cli/regenerate_responses.py`."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer


def append_whole(file, text: str) -> None:
    """Append *text* to an open file in one write; a write that fails is taken back."""
    descriptor = file.fileno()
    end = os.fstat(descriptor).st_size
    data = text.encode("utf-8")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        os.ftruncate(descriptor, end)
        raise


def _begins(row: dict[str, Any], name: object, ids: list[object]) -> bool:
    """Whether *row* does not go on with the conversation *name* of the rows *ids*."""
    own = row.get("id")
    return (
        name is None
        or row.get("primary_id") != name
        or own in ids  # the same conversation again, e.g. of a data set with doubles
        or str(own).endswith("_gen0")
    )


def _torn_lines(path: Path) -> set[int]:
    """Numbers of lines that are half, or of a conversation that is not whole."""
    torn: set[int] = set()
    name: object = None
    expected: int | None = None
    ids: list[object] = []
    numbers: list[int] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                torn.add(number)
                continue
            if not ids or _begins(row, name, ids):
                if expected is not None and len(ids) != expected:
                    torn.update(numbers)
                name, ids, numbers = row.get("primary_id"), [], []
                expected = (row.get("metadata") or {}).get("conversation_rows")
            ids.append(row.get("id"))
            numbers.append(number)
    if expected is not None and len(ids) != expected:
        torn.update(numbers)
    return torn


def drop_torn_rows(path: str) -> int:
    """Drop half a line and the rows of conversations that are not whole.

    What a killed run can leave; the conversations are then asked again. The file
    is replaced in one step, and only if something is dropped. Returns the number
    of lines dropped.
    """
    source = Path(path)
    torn = _torn_lines(source) if source.is_file() else set()
    if torn:
        kept_path = source.with_name(f".{source.name}.{os.getpid()}.tmp")
        with source.open("rb") as lines, kept_path.open("wb") as kept:
            kept.writelines(
                line for number, line in enumerate(lines) if number not in torn
            )
        kept_path.replace(source)
    return len(torn)


def collect(samples):
    lines = []


def one_line(sample, samples, lines):
    sample["metadata"]["conversation_rows"] = len(samples)
    lines.append(json.dumps(sample, ensure_ascii=False) + "\n")


def write_them(out_fh, lines):
    append_whole(out_fh, "".join(lines))


def prepare_outfile(outfile: str, resume: bool) -> None:
    """Repair *outfile* before a resume; refuse to append to it without one."""
    if resume:
        dropped = drop_torn_rows(outfile)
        if dropped:
            typer.echo(f"Dropped {dropped} torn rows of {outfile}; asking again")
    elif Path(outfile).is_file() and Path(outfile).stat().st_size > 0:
        raise typer.BadParameter(
            f"{outfile} has rows already: pass --resume to go on with it, or another "
            "--outfile"
        )


def timeout_option():
    request_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds without a byte after which a request is given up",
        ),
    ] = 3600.0


def error_option():
    max_error_rate: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of failed conversations above which to exit with code 1",
        ),
    ] = 0.1


def _fail_if_too_many(
    stats: dict[str, Any], num_earlier: int, max_error_rate: float
) -> None:
    """Exit with code 1 if more than *max_error_rate* of the conversations failed.

    Those that earlier runs have answered (*num_earlier*) count as conversations too.
    """
    total = stats["ok"] + stats["errors"] + num_earlier
    if stats["errors"] > max_error_rate * total:
        typer.echo(
            f"{stats['errors']} of {total} conversations failed, more than "
            f"--max-error-rate {max_error_rate:g}. Mend the cause and run again with "
            "--resume: what was answered is kept.",
            err=True,
        )
        raise typer.Exit(1)
