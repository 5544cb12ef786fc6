"""UPSTREAM.md's table: one row a patch, made from the records."""

from __future__ import annotations

from speculators_patches import patches
from speculators_patches.registry import Patch

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
