"""A clean checkout or an unpacked source of upstream: where its package, tests and version are.

Nothing here writes into it. `lay_out` makes a scratch copy whose untouched files are links, so that
a package of a hundred megabytes (vLLM) costs milliseconds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from speculators_patches.export.problems import ExportError

_VERSION_LINE = re.compile(r"^(?:__version__\s*=\s*)?(?:version|__version__)\s*=\s*['\"]([^'\"]+)")


@dataclass(frozen=True)
class Tree:
    """One upstream source tree.

    Attributes:
        root: the folder that paths in a patch start from.
        package: the top-level package's name, e.g. `speculators`.
        prefix: the package's folder below `root`: "src/speculators" or "speculators".
        version: of the package.
        has_tests: whether upstream's own tests are there.
    """

    root: Path
    package: str
    prefix: str
    version: Version
    has_tests: bool

    @property
    def is_flat(self) -> bool:
        """True for an installed package or a repository without `src/`."""
        return "/" not in self.prefix

    def path(self, inside: str) -> str:
        """`train/data.py` of the package, as a path below `root`."""
        return f"{self.prefix}/{inside}"

    def lay_out(self, to: Path, touched: Iterable[str], also: Iterable[str] = ()) -> None:
        """A copy in `to`: real files where `touched` (paths below root), links elsewhere.

        Args:
            also: folders of the repository beside the package and the tests.
        """
        own = set(touched)
        parts = [self.prefix, *also]
        if self.has_tests:
            parts.append("tests")
        for part in parts:
            for source in _files(self.root / part):
                name = source.relative_to(self.root).as_posix()
                target = to / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if name in own:
                    shutil.copyfile(source, target)
                else:
                    target.symlink_to(source)
        outside = {name for name in own if not (to / name).exists()}
        for name in sorted(outside | {"pyproject.toml"}):
            if (self.root / name).is_file():
                (to / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.root / name, to / name)


def find(folder: Path, package: str, version: str | None = None) -> Tree:
    """The tree that `folder` is: a repository, an unpacked sdist or wheel, or the package itself.

    Args:
        version: what to take for its version; None: read it from the tree.

    Raises:
        ExportError: `folder` holds no such package, or its version can't be told.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ExportError(f"--tree {folder} is no folder")
    if root.name == package and (root / "__init__.py").is_file():
        root = root.parent.parent if root.parent.name == "src" else root.parent
    # The last: a member of a repository of several packages.
    for prefix in (f"src/{package}", package, f"{package}/src/{package}"):
        if (root / prefix / "__init__.py").is_file():
            found = _version(root, prefix, package) if version is None else version
            return Tree(root, package, prefix, _parsed(found, folder), _has_tests(root))
    raise ExportError(
        f"--tree {folder} has neither src/{package}/ nor {package}/; give a checkout or an "
        f"unpacked source of {package}"
    )


def dirty(tree: Tree) -> list[str]:
    """Files below the package or tests that differ from the checkout's commit, if it is one."""
    if not (tree.root / ".git").exists():
        return []
    command = ["git", "-C", str(tree.root), "status", "--porcelain", "--", tree.prefix, "tests"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line[3:] for line in done.stdout.splitlines()]


def _files(folder: Path) -> Iterable[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in ("__pycache__", ".git"))
        for name in sorted(names):
            if not name.endswith(".pyc"):
                yield Path(here) / name


def _has_tests(root: Path) -> bool:
    return (root / "tests" / "unit").is_dir() or (root / "tests" / "v1").is_dir()


def _version(root: Path, prefix: str, package: str) -> str | None:
    for info in sorted(root.glob("*.dist-info")):
        name, _, number = info.name.removesuffix(".dist-info").partition("-")
        if name in (package, f"{package}_cpu"):
            return number
    about = root / "PKG-INFO"
    if about.is_file():
        for line in about.read_text(encoding="utf-8").splitlines():
            if line.startswith("Version: "):
                return line.removeprefix("Version: ").strip()
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--tags", "--match", "v[0-9]*"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        tag, _, rest = done.stdout.strip().removeprefix("v").partition("-")
        if tag:
            # Commits after a tag: newer than the release, and not the next one.
            return f"{tag}.post{rest.partition('-')[0]}" if rest else tag
    # Last: upstream's 0.6.0.2 calls itself 0.5.0 in there.
    for name in ("version.py", "_version.py"):
        file = root / prefix / name
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                if match := _VERSION_LINE.match(line):
                    return match.group(1)
    return None


def _parsed(version: str | None, folder: Path) -> Version:
    if not version:
        raise ExportError(f"the version of {folder} can't be told; give it with --tree-version")
    try:
        return Version(version)
    except InvalidVersion:
        raise ExportError(
            f"{version!r} is no version number; give one with --tree-version"
        ) from None
