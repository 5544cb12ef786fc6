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


def _is_whole(rows: list[dict[str, Any]]) -> bool:
    """Whether a conversation's rows are all there, as far as they say how many."""
    expected = (rows[0].get("metadata") or {}).get("conversation_rows")
    return expected is None or len(rows) == expected


def drop_torn_rows(path: str) -> int:
    """Drop half a line and the rows of conversations that are not whole.

    What a killed run can leave; the conversations are then asked again. The file
    is replaced in one step, and only if something is dropped. Returns the number
    of lines dropped.
    """
    source = Path(path)
    if not source.is_file():
        return 0
    kept_path = source.with_name(f".{source.name}.{os.getpid()}.tmp")
    dropped = 0
    with source.open("rb") as lines, kept_path.open("wb") as kept:
        conversation: list[bytes] = []
        rows: list[dict[str, Any]] = []

        def close() -> int:
            lost = 0
            if rows and not _is_whole(rows):
                lost = len(conversation)
            else:
                kept.writelines(conversation)
            conversation.clear()
            rows.clear()
            return lost

        for line in lines:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict):
                dropped += 1
                continue
            if rows and row.get("primary_id") != rows[0].get("primary_id"):
                dropped += close()
            conversation.append(line)
            rows.append(row)
        dropped += close()
    if dropped:
        kept_path.replace(source)
    else:
        kept_path.unlink()
    return dropped


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


def _fail_if_too_many(stats: dict[str, Any], max_error_rate: float) -> None:
    """Exit with code 1 if more than *max_error_rate* of the conversations failed."""
    total = stats["ok"] + stats["errors"]
    if stats["errors"] > max_error_rate * total:
        typer.echo(
            f"{stats['errors']} of {total} conversations failed, more than "
            f"--max-error-rate {max_error_rate:g}. Mend the cause and run again with "
            "--resume: what was answered is kept.",
            err=True,
        )
        raise typer.Exit(1)
