"""The text of a pull request: problem, reproduction, fix, tests, risk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speculators_patches.export import order
from speculators_patches.export.spec import Spec, Step
from speculators_patches.export.tree import Tree

if TYPE_CHECKING:
    from speculators_patches.export.exporting import StepCheck


def text(spec: Spec, step: Step, tree: Tree, check: StepCheck | None) -> str:
    """Markdown. Results appear only where `check` has seen them."""
    place = spec.steps.index(step)
    parts = [f"# {step.subject}\n"]
    if len(spec.steps) > 1:
        before = f", on top of `{spec.steps[place - 1].slug}`" if place else ""
        parts.append(f"Part {place + 1} of {len(spec.steps)}{before}.\n")
    parts += ["## Purpose\n", "### Problem\n", _paragraphs(step.problem)]
    if step.related:
        parts.append(_paragraphs(f"Related: {step.related}"))
    elif spec.related and not any(other.related for other in spec.steps):
        parts.append(f"Related: {spec.related}.\n")
    if meets := order.sentences(step):
        parts.append(_paragraphs(meets))
    parts += ["### Reproduction\n", _reproduction(spec, step, tree, check)]
    parts += ["### Fix\n", _paragraphs(step.fix)]
    parts += ["## Tests\n", _tests(step, tree, check)]
    parts += ["## Risk\n", _paragraphs(step.risk)]
    parts += ["## Checklist\n", _CHECKLIST + _by_hand(step, tree)]
    return "\n".join(parts)


# What no program can tick.
_CHECKLIST = """\
- [ ] The purpose of the PR is stated, with links to the issues it resolves.
- [ ] The test plan and its results are given above.
- [ ] A human has read every changed line, can answer for it, and has said how it was written.
"""


def _by_hand(step: Step, tree: Tree) -> str:
    """What the tree had no file for: a release comes without documentation."""
    missing = [path for path in step.beside if not (tree.root / path).is_file()]
    return "".join(
        f"- [ ] `{path}`, which {tree.package} {tree.version} as given here does not have, says "
        "what changes.\n"
        for path in missing
        if path.endswith(".md")
    )


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n")) + "\n"


def _reproduction(spec: Spec, step: Step, tree: Tree, check: StepCheck | None) -> str:
    script = (spec.folder / step.reproduction).read_text(encoding="utf-8").strip()
    shown = f"```python\n{script}\n```\n"
    if check is None:
        return shown
    return (
        f"{shown}\nOn {tree.package} {tree.version}:\n\n```\n{check.before.words}\n```\n\n"
        f"With this change:\n\n```\n{check.after.words}\n```\n"
    )


def _tests(step: Step, tree: Tree, check: StepCheck | None) -> str:
    command = f"```\npython -m pytest {' '.join(step.tests)}\n```\n"
    if check is None:
        return command
    before, after = check.tests_before, check.tests_after
    more = after.passed > before.passed + before.failed
    earlier = " (those of the earlier parts included)" if more else ""
    return (
        f"{command}\nOn {tree.package} {tree.version}: {before.failed} of "
        f"{before.failed + before.passed} fail without the change; with it {after.passed} pass"
        f"{earlier} and {after.failed} fail.\n"
    )
