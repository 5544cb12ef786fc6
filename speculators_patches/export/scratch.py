"""A scratch repository in which a stack of pull requests is made, commit by commit."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from speculators_patches.export import code
from speculators_patches.export.edits import Edit
from speculators_patches.export.problems import DoesNotFit, ExportError
from speculators_patches.export.source import Source
from speculators_patches.export.spec import Spec, Step
from speculators_patches.export.tree import Tree

# Who made a commit where git knows nobody. Whoever sends the patch has a name.
NOBODY = "speculators-patches <speculators-patches@localhost>"


@dataclass(frozen=True)
class Author:
    """Who the commits are by, and whether they sign them off (vLLM asks for that)."""

    name: str
    mail: str
    signs_off: bool = False

    @classmethod
    def of(cls, text: str | None, signs_off: bool) -> Author:
        """From "Name <mail>"; None: git's own settings, or nobody.

        Raises:
            ExportError: the text has no such form, or a sign-off has nobody to make it.
        """
        if text is None:
            name, mail = _setting("user.name"), _setting("user.email")
            if signs_off and not (name and mail):
                raise ExportError("--signoff needs a name: set git's user.name and user.email, "
                                  'or give --author "Name <mail>"')  # fmt: skip
            text = f"{name} <{mail}>" if name and mail else NOBODY
        name, _, rest = text.partition(" <")
        if not name.strip() or not rest.endswith(">") or "@" not in rest:
            raise ExportError(f'--author {text!r} is not of the form "Name <mail>"')
        return cls(name.strip(), rest[:-1], signs_off)


class Scratch:
    """A copy of a tree under git, with one commit of what upstream has.

    Args:
        folder: an empty one.
        spec: whose files will be touched.
    """

    def __init__(self, folder: Path, tree: Tree, spec: Spec, author: Author) -> None:
        self.folder = folder
        self.tree = tree
        self._author = author
        touched = {tree.path(name) for step in spec.steps for name in step.files}
        touched |= {name for step in spec.steps for name in step.beside}
        tree.lay_out(folder, touched)
        self.git("init", "--quiet", "--initial-branch", "main")
        present = sorted(name for name in touched if (folder / name).is_file())
        if present:
            self.git("add", "--force", "--", *present)
        self.git("commit", "--quiet", "--allow-empty", "-m", f"{tree.package} {tree.version}")

    def git(self, *words: str, **more: str) -> str:
        """Runs git here, deaf to the user's settings; its output.

        Raises:
            ExportError: git is missing or fails.
        """
        environment = os.environ | {
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_AUTHOR_NAME": self._author.name,
            "GIT_AUTHOR_EMAIL": self._author.mail,
            "GIT_COMMITTER_NAME": self._author.name,
            "GIT_COMMITTER_EMAIL": self._author.mail,
        }
        for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set while a hook runs
            environment.pop(name, None)
        command = ["git", "-C", str(self.folder), *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment | more
            )
        except FileNotFoundError:
            raise ExportError(
                "git is not installed; the export makes its patches with it"
            ) from None
        if done.returncode:
            raise ExportError(
                f"git {words[0]} failed: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout

    def write(self, spec: Spec, step: Step) -> list[str]:
        """Makes a step's changes; the paths changed.

        Raises:
            DoesNotFit: a place to change is not there; the files before it may have changed.
        """
        changed = []
        for path, edits in self._wanted(step).items():
            file = self.folder / path
            if not file.is_file():
                raise DoesNotFit(f"{self.tree.package} {self.tree.version} has no {path}")
            text = file.read_text(encoding="utf-8")
            for edit in edits:
                text = edit.change(Source(text, path))
            Source(text, path)  # still Python?
            file.write_text(text, encoding="utf-8")
            changed.append(path)
        for name, source in step.new_files.items():
            changed.append(self._place(self.tree.path(name), spec.folder / source))
        return changed

    def paths(self, step: Step) -> list[str]:
        """The files of the package that `write` will change or make."""
        return [*self._wanted(step), *(self.tree.path(name) for name in step.new_files)]

    def _wanted(self, step: Step) -> dict[str, tuple[Edit, ...]]:
        inside = {self.tree.path(name): edits for name, edits in step.files.items()}
        present = {n: edits for n, edits in step.beside.items() if (self.folder / n).is_file()}
        return inside | present

    def write_tests(self, spec: Spec, step: Step) -> list[str]:
        """Puts a step's tests in place; their paths."""
        return [self._place(name, spec.folder / source) for name, source in step.tests.items()]

    def commit(self, step: Step, paths: list[str]) -> None:
        """Commits what `write` and `write_tests` have made."""
        self.git("add", "--force", "--", *paths)
        signoff = ["--signoff"] if self._author.signs_off else []
        self.git("commit", "--quiet", *signoff, "-m", message(step))

    def _place(self, path: str, source: Path) -> str:
        file = self.folder / path
        if file.exists() and not file.is_symlink() and self.git("ls-files", "--", path) == "":
            raise DoesNotFit(f"{path} exists already")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        file.write_text(code.whole(source), encoding="utf-8")
        return path


def message(step: Step) -> str:
    """A commit's subject and body, wrapped as upstream's are."""
    import textwrap

    paragraphs = [step.problem.strip(), step.fix.strip()]
    body = "\n\n".join(
        textwrap.fill(" ".join(part.split()), 72)
        for paragraph in paragraphs
        for part in paragraph.split("\n\n")
    )
    return f"{step.subject}\n\n{body}\n"


def _setting(name: str) -> str:
    try:
        done = subprocess.run(["git", "config", name], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
