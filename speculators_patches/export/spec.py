"""What one exported patch consists of: a stack of pull requests, usually of one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType

from packaging.specifiers import SpecifierSet

from speculators_patches import patches
from speculators_patches.export.edits import Edit
from speculators_patches.registry import Patch


@dataclass(frozen=True)
class Step:
    """One pull request.

    Attributes:
        slug: short name, for file names.
        subject: of the commit, one line.
        problem: what is wrong, for the commit and the pull request; Markdown, no headings.
        fix: what the change does and why so.
        risk: what it could break, what it leaves out, what it costs.
        reproduction: script in the spec's folder; unpatched it prints a line beginning "DEFECT:"
            and exits 1, patched it prints "OK: ..." and exits 0.
        files: path inside the package -> edits.
        tests: path in upstream's repository -> file in the spec's folder.
        new_files: path inside the package -> file in the spec's folder.
        beside: path in upstream's repository, outside the package -> edits; made only where the
            tree has the file (a wheel has neither scripts/ nor docs/).
        differs: how the overlay's own patch differs, for UPSTREAM.md.
        related: upstream issues and pull requests that this step touches, where it is not all of
            the spec's, and how it differs from them; Markdown sentences.
    """

    slug: str
    subject: str
    problem: str
    fix: str
    risk: str
    reproduction: str
    files: Mapping[str, tuple[Edit, ...]]
    tests: Mapping[str, str]
    new_files: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, tuple[Edit, ...]] = field(default_factory=dict)
    differs: str = ""
    related: str = ""


@dataclass(frozen=True)
class Spec:
    """One patch of the overlay (or a part of the recipe) as upstream would have it.

    Attributes:
        name: the overlay's patch, or a name of its own where there is no such patch.
        steps: pull requests, each on top of the one before.
        package: what it changes, `speculators` or `vllm`.
        needed: versions with the defect; None: the record's.
        related: upstream issues and pull requests that a reader should know of.
    """

    name: str
    steps: tuple[Step, ...]
    package: str = "speculators"
    needed: SpecifierSet | None = None
    related: str = ""

    @property
    def patch(self) -> Patch | None:
        """The overlay's record of that name."""
        return patches.table().get(self.name)

    @property
    def folder(self) -> Path:
        """Where its code, tests and reproductions are."""
        return Path(__file__).parent / "specs" / self.name

    @property
    def versions(self) -> SpecifierSet:
        """Versions of the package that have the defect."""
        if self.needed is not None:
            return self.needed
        assert self.patch is not None, f"{self.name} has neither a record nor `needed`"
        return self.patch.needed


@cache
def table() -> Mapping[str, Spec]:
    """Name -> spec, in alphabetical order. Reading it imports neither torch nor upstream."""
    from speculators_patches.export import specs

    found = {}
    for info in sorted(pkgutil.iter_modules(specs.__path__), key=lambda item: item.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{specs.__name__}.{info.name}")
        found[info.name] = module.SPEC
    return MappingProxyType(found)
