"""Exports one patch: says whether the tree needs it, makes its commits, checks and writes them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speculators_patches.export import known, pull_request, running
from speculators_patches.export.problems import DoesNotFit, ExportError
from speculators_patches.export.running import Ran, Tests
from speculators_patches.export.scratch import Author, Scratch
from speculators_patches.export.spec import Spec, Step
from speculators_patches.export.tree import Tree


@dataclass(frozen=True)
class StepCheck:
    """What one pull request showed.

    Attributes:
        before, after: the reproduction without and with the change.
        tests_before, tests_after: the exported tests without and with it.
        lint: "clean", upstream's ruff's complaints, or "" where it can't be asked.
    """

    before: Ran
    after: Ran
    tests_before: Tests
    tests_after: Tests
    lint: str

    def problems(self) -> list[str]:
        """Why this is not a pull request to send; empty if it is."""
        found = []
        if self.before.verdict != "defect":
            found.append(f"the reproduction does not show the defect before: {self.before.words}")
        if self.after.verdict != "ok":
            found.append(f"the reproduction still fails after: {self.after.words}")
        if not self.tests_before.failed:
            found.append("no exported test fails before the change")
        if self.tests_after.failed:
            found.append(f"exported tests fail: {', '.join(self.tests_after.names)}")
        if not self.tests_after.passed:
            found.append("no exported test ran")
        if self.lint not in ("", "clean"):
            found.append(f"upstream's lint settings complain: {self.lint}")
        return found


@dataclass(frozen=True)
class Outcome:
    """What came of one patch.

    Attributes:
        verdict: "exported", "not needed", "refused" (the source is unknown) or "failed" (a check).
        files: written, below the output folder.
        checks: one a step, if they were made.
    """

    name: str
    verdict: str
    reason: str
    files: tuple[str, ...] = ()
    checks: tuple[StepCheck, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the command may exit 0."""
        return self.verdict in ("exported", "not needed")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def export(
    spec: Spec,
    tree: Tree,
    out: Path,
    *,
    author: Author,
    check: bool = False,
    allow_drift: bool = False,
    say: Callable[[str], None] = lambda _text: None,
) -> Outcome:
    """Writes `out/<name>/`: one patch file and one text per pull request.

    Args:
        check: run reproductions and tests before and after each change.
        allow_drift: go on although a function's source was never checked.
        say: told what is under way.
    """
    if reason := not_needed(spec, tree):
        return Outcome(spec.name, "not needed", reason)
    drifted = known.drifted(spec, tree)
    if drifted and not allow_drift:
        return Outcome(
            spec.name,
            "refused",
            f"{'; '.join(drifted)}. Read what changed; --allow-drift {spec.name} goes on "
            "nevertheless, and --check shows whether it still works",
        )
    with tempfile.TemporaryDirectory(prefix="speculators-patches-") as temporary:
        work, again = Path(temporary, "work"), Path(temporary, "again")
        work.mkdir()
        again.mkdir()
        checks = []
        try:
            scratch = Scratch(work, tree, spec, author)
            for step in spec.steps:
                say(f"{spec.name}: {step.slug}")
                checks += _make(scratch, spec, step, check)
            patches = _format(scratch)
            _apply(Scratch(again, tree, spec, author), scratch, patches)
        except DoesNotFit as error:
            return Outcome(spec.name, "refused", str(error))
        problems = [
            f"{step.slug}: {problem}"
            for step, made in zip(spec.steps, checks, strict=False)
            for problem in made.problems()
        ]
        files = _write(out / spec.name, spec, tree, patches, checks)
    if problems:
        return Outcome(spec.name, "failed", "; ".join(problems), files, tuple(checks))
    steps = len(spec.steps)
    what = f"{steps} pull requests, one on the other" if steps > 1 else "1 pull request"
    return Outcome(spec.name, "exported", what, files, tuple(checks))


def not_needed(spec: Spec, tree: Tree) -> str | None:
    """Why the tree has no use for the patch, or None."""
    if spec.versions.contains(tree.version, prereleases=True):
        return None
    patch = spec.patch
    if patch is not None and patch.fixed_in is not None:
        number = patch.upstream.rpartition("/")[2]
        if tree.version >= _version(patch.fixed_in):
            return f"upstreamed in {patch.fixed_in} (#{number})"
    return f"it is for {tree.package} {spec.versions}, this is {tree.version}"


def _version(text: str) -> Any:
    from packaging.version import Version

    return Version(text)


def _make(scratch: Scratch, spec: Spec, step: Step, check: bool) -> list[StepCheck]:
    reproduction = spec.folder / step.reproduction
    tests = list(step.tests)
    if not check:
        changed = scratch.write(spec, step)
        scratch.commit(step, [*changed, *scratch.write_tests(spec, step)])
        return []
    paths = scratch.paths(step)
    old = running.complaints(paths, scratch.folder)
    scratch.write_tests(spec, step)  # first: a reproduction may use what they use
    before, tests_before = running.run(reproduction, tests, scratch.folder, scratch.tree)
    changed = scratch.write(spec, step)
    scratch.commit(step, [*changed, *tests])
    new = running.complaints([*paths, *tests], scratch.folder)
    lint = "" if old is None or new is None else "; ".join(sorted((new - old).elements()))
    if step is spec.steps[-1]:  # on top of the others, whose tests have to hold as well
        tests = [path for each in spec.steps for path in each.tests]
    after, tests_after = running.run(reproduction, tests, scratch.folder, scratch.tree)
    lint = lint or ("" if new is None else "clean")
    return [StepCheck(before, after, tests_before, tests_after, lint)]


def _format(scratch: Scratch) -> list[Path]:
    where = scratch.folder / ".git" / "series"
    first = scratch.git("rev-list", "--max-parents=0", "HEAD").strip()
    scratch.git(
        "format-patch", "--quiet", "--zero-commit", "--no-signature", "-o", str(where), first
    )
    return sorted(where.glob("*.patch"))


def _apply(clean: Scratch, made: Scratch, patches: list[Path]) -> None:
    """What `git am` makes of the patches on a clean copy must be what was made."""
    clean.git("am", "--quiet", *map(str, patches))
    trees = [scratch.git("rev-parse", "HEAD^{tree}").strip() for scratch in (clean, made)]
    if trees[0] != trees[1]:
        raise ExportError("git am makes something else of the patches than what was exported")


def _write(
    folder: Path, spec: Spec, tree: Tree, patches: list[Path], checks: list[StepCheck]
) -> tuple[str, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("0*.patch"), *folder.glob("0*.md")]:  # of an earlier export
        old.unlink()
    written = []
    for number, (step, patch) in enumerate(zip(spec.steps, patches, strict=True)):
        name = f"{number + 1:04d}-{step.slug}"
        shutil.copyfile(patch, folder / f"{name}.patch")
        text = pull_request.text(spec, step, tree, checks[number] if checks else None)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
        written += [f"{spec.name}/{name}.patch", f"{spec.name}/{name}.md"]
    return tuple(written)
