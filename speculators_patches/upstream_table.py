"""UPSTREAM.md's table: one row a patch, made from the records."""

from __future__ import annotations

from pathlib import Path

from speculators_patches import patches
from speculators_patches.registry import Patch

BEGIN = "<!-- patches: written by `python -m speculators_patches upstream-table --write` -->"
END = "<!-- end of patches -->"

HEADER = (
    "| patch | defect | versions | upstream | fixed in | remove when | proof |\n"
    "|---|---|---|---|---|---|---|\n"
)


def row(patch: Patch) -> str:
    """One Markdown table row for a record."""
    versions = f"{' or '.join(patch.distribution)} {patch.needed}"
    named = "" if patch.default else " Applied only when named."
    learning = " Changes what is learnt." if patch.changes_learning else ""
    cells = (
        f"`{patch.name}`",
        patch.defect + learning + named,
        versions,
        patch.upstream,
        patch.fixed_in or "none",
        patch.remove_when,
        f"`{patch.proof}`",
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def render() -> str:
    """Header and rows."""
    return HEADER + "".join(row(patch) for patch in patches.table().values())


def update(file: Path) -> bool:
    """Replaces what is between the two markers in `file`; False if they are not there."""
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    file.write_text(f"{before}{BEGIN}\n\n{render()}\n{END}{after}")
    return True
