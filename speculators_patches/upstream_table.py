"""UPSTREAM.md's table: one row a patch, made from the records."""

from __future__ import annotations

from pathlib import Path

from packaging.version import Version

from speculators_patches import patches
from speculators_patches.export import known, spec
from speculators_patches.export.spec import Spec
from speculators_patches.registry import Patch

BEGIN = "<!-- patches: written by `python -m speculators_patches upstream-table --write` -->"
END = "<!-- end of patches -->"

HEADER = (
    "| patch | defect | versions | shown in | upstream | fixed in | remove when | proof | "
    "as a pull request |\n"
    "|---|---|---|---|---|---|---|---|---|\n"
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
        _shown_in(patch),
        _upstream(patch),
        patch.fixed_in or "none",
        patch.remove_when,
        f"`{patch.proof}`",
        _exported(patch.name),
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def _shown_in(patch: Patch) -> str:
    """First and last version with the defect among those that the patch was run on.

    Where `needed` begins earlier, its source says so and nobody has run it.
    """
    affected = [version for version in map(Version, patch.tested) if version in patch.needed]
    if not affected:
        return "none"
    first, last = min(affected), max(affected)
    shown = str(first) if first == last else f"{first} to {last}"
    begins = [Version(part.version) for part in patch.needed if part.operator == ">="]
    if begins and max(begins).release[:2] < first.release[:2]:
        shown += f"; {max(begins)} and what follows it were read, not run"
    return shown


def _upstream(patch: Patch) -> str:
    """The record's link, and what is known of its state from the exported pull request."""
    exported = spec.table().get(patch.name)
    return (
        f"{patch.upstream}; {exported.related}" if exported and exported.related else patch.upstream
    )


def _exported(name: str) -> str:
    """Subjects of the exported pull requests, and how the overlay differs."""
    exported = spec.table().get(name)
    if exported is None:
        return "not exported"
    return "; ".join(f"{step.subject} (here: {step.differs})" for step in exported.steps)


def without_record() -> list[Spec]:
    """What is exported and has no patch here: the recipe does it in another way."""
    return [item for item in spec.table().values() if item.patch is None]


def exported_row(item: Spec) -> str:
    """One Markdown table row for an export without a record."""
    cells = (
        f"`{item.name}`",
        " ".join(item.steps[0].problem.split()),
        f"{item.package} {item.versions}",
        ", ".join(known.versions(item)) or "none",
        item.related or "no issue found",
        "none",
        "no patch here",
        "`export --check`",
        _exported(item.name),
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |\n"


def render() -> str:
    """Header and rows."""
    return (
        HEADER
        + "".join(row(patch) for patch in patches.table().values())
        + "".join(map(exported_row, without_record()))
    )


def update(file: Path) -> bool:
    """Replaces what is between the two markers in `file`; False if they are not there."""
    before, begin, rest = file.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        return False
    file.write_text(f"{before}{BEGIN}\n\n{render()}\n{END}{after}")
    return True
