"""Shows a report as a table for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from speculators_patches.report import Report, Verdict

_STYLE = {
    Verdict.APPLIED: "green",
    Verdict.NEEDED: "yellow",
    Verdict.REFUSED: "bold red",
}


def show(report: Report, console: Console | None = None) -> None:
    """Prints versions and one row a patch; URLs are not cut."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=200)  # a log or a pipe: links stay in one piece
    console.print(", ".join(f"{name} {version}" for name, version in report.versions.items()))
    table = Table(box=None, pad_edge=False)
    table.add_column("patch", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("reason", overflow="fold")
    table.add_column("upstream", overflow="fold")
    for row in report.rows:
        notes = [] if row.default else ["applied only when named"]
        if row.changes_learning:
            notes.append("changes what is learnt")
        reason = row.reason + (f" [{'; '.join(notes)}]" if notes else "")
        shown = row.verdict.replace("_", " ")
        style = _STYLE.get(row.verdict, "dim")
        table.add_row(row.patch, f"[{style}]{shown}[/]", _plain(reason), _plain(row.link))
    console.print(table)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
