"""Which sources an export was made for: fingerprints of the functions that it changes.

`known.json` is written by `export --check --record`, after the check of that tree has passed.
"""

from __future__ import annotations

import json
from pathlib import Path

from packaging.version import Version

from speculators_patches import drift
from speculators_patches.export.spec import Spec
from speculators_patches.export.tree import Tree

FILE = Path(__file__).with_name("known.json")

_Known = dict[str, dict[str, dict[str, list[str]]]]


def targets(spec: Spec, tree: Tree) -> dict[str, str]:
    """Of what `spec` changes in a clean tree: "train/data.py:ArrowDataset" -> fingerprint."""
    found = {}
    for step in spec.steps:
        for name, edits in step.files.items():
            file = tree.root / tree.path(name)
            if not file.is_file():
                continue
            for target in {edit.target for edit in edits if edit.target}:
                prints = [item.fingerprint for item in drift.definitions(file, target)]
                if prints:  # else a step before it makes it
                    found[f"{name}:{target}"] = prints[-1]
    return dict(sorted(found.items()))


def drifted(spec: Spec, tree: Tree) -> list[str]:
    """A clause for each function whose source is none that `spec` was checked with."""
    known = _read().get(spec.name, {})
    problems = []
    for target, found in targets(spec, tree).items():
        if found not in known.get(target, {}):
            versions = sorted({v for vs in known.get(target, {}).values() for v in vs}, key=Version)
            known_from = f"known from {', '.join(versions)}" if versions else "never checked"
            problems.append(f"{target} is {found} here ({known_from})")
    return problems


def versions(spec: Spec) -> list[str]:
    """Versions that `spec` was checked with."""
    found = {
        v for prints in _read().get(spec.name, {}).values() for vs in prints.values() for v in vs
    }
    return sorted(found, key=Version)


def record(spec: Spec, tree: Tree) -> None:
    """Adds this tree's fingerprints to `known.json`."""
    content = _read()
    mine = content.setdefault(spec.name, {})
    for target, found in targets(spec, tree).items():
        versions = mine.setdefault(target, {}).setdefault(found, [])
        if str(tree.version) not in versions:
            versions.append(str(tree.version))
            versions.sort(key=Version)
    FILE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read() -> _Known:
    if not FILE.is_file():
        return {}
    content: _Known = json.loads(FILE.read_text(encoding="utf-8"))
    return content
