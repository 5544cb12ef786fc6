"""Runs upstream's own unit tests with and without the overlay and compares them test by test.

    python -m tests.compat.upstream_tests TREE [--tree-version V] [--only NAME] [--json FILE]

TREE is a checkout of vllm-project/speculators. Its tests can't ship with this project, so they come
from there; what they need beside it (transformers of the right age) is the nearest version that
`make matrix` lays out. A test whose result differs with the overlay has to be in
`expected_differences.toml` with the reason why that is right; any other ends this with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as xml
from dataclasses import dataclass
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from speculators_patches import patches
from speculators_patches.export.problems import ExportError
from speculators_patches.export.tree import Tree, find
from tests.compat import matrix

EXPECTED = Path(__file__).with_name("expected_differences.toml")
_PYTEST = ("-q", "-p", "no:cacheprovider", "-o", "addopts=", "--timeout", "600",
           "--continue-on-collection-errors")  # fmt: skip


@dataclass(frozen=True)
class Expected:
    """A difference that is right.

    Attributes:
        test: "tests.unit.train.test_x::test_y", parameters included or left out.
        versions: upstream versions in which it differs.
        patch: the patch that makes it differ.
        why: one sentence.
    """

    test: str
    versions: SpecifierSet
    patch: str
    why: str

    def covers(self, test: str, version: Version) -> bool:
        """Whether this explains a difference in `test`."""
        named = test == self.test or test.startswith(self.test + "[")
        return named and self.versions.contains(version, prereleases=True)


@dataclass(frozen=True)
class Comparison:
    """One tree: test -> "passed", "failed" or "skipped", without and with the overlay."""

    version: Version
    active: tuple[str, ...]
    refused: tuple[str, ...]
    without: dict[str, str]
    with_overlay: dict[str, str]

    def worse(self) -> list[str]:
        """Tests that pass without the overlay and do not with it."""
        return [
            test
            for test, result in sorted(self.without.items())
            if result == "passed" and self.with_overlay.get(test) != "passed"
        ]

    def better(self) -> list[str]:
        """Tests that pass only with the overlay."""
        return [
            test
            for test, result in sorted(self.without.items())
            if result == "failed" and self.with_overlay.get(test) == "passed"
        ]

    def count(self, result: str, *, overlay: bool) -> int:
        """How many tests had a result."""
        return list((self.with_overlay if overlay else self.without).values()).count(result)


def expected() -> list[Expected]:
    """What `expected_differences.toml` says."""
    content = tomllib.loads(EXPECTED.read_text(encoding="utf-8"))
    return [
        Expected(item["test"], SpecifierSet(item["versions"]), item["patch"], item["why"])
        for item in content.get("difference", ())
    ]


def compare(tree: Tree, tests: str = "tests/unit", skip: tuple[str, ...] = ()) -> Comparison:
    """Runs the tests twice, in processes of their own.

    Raises:
        ExportError: the tree has no tests, or a run of them did not come to its end.
    """
    if not (tree.root / tests).exists():
        raise ExportError(f"{tree.root} has no {tests}; give a checkout, an sdist has no tests")
    with tempfile.TemporaryDirectory(prefix="upstream-tests-") as temporary:
        folder = Path(temporary)
        tree.lay_out(folder, (), also=("scripts", "examples"))
        environment = _environment(tree, folder)
        rows = _status(folder, environment)
        refused = tuple(sorted({row for row, verdict in rows.items() if verdict == "refused"}))
        left_out = ",".join([*refused, *skip])
        active = tuple(
            row
            for row, verdict in rows.items()
            if verdict == "needed" and row not in left_out.split(",")
        )
        without = _run(folder, environment, tests, ("-m", "pytest"))
        overlay = (
            "-m",
            "speculators_patches",
            "run",
            "--skip",
            left_out,
            "--module",
            "pytest",
            "--",
        )
        with_overlay = _run(folder, environment, tests, overlay)
    return Comparison(tree.version, active, refused, without, with_overlay)


def _environment(tree: Tree, folder: Path) -> dict[str, str]:
    """The tree's own code in front, with metadata that says its version; then a matrix layout."""
    info = folder / "metadata" / f"speculators-{tree.version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: speculators\nVersion: {tree.version}\n"
    )
    series = tree.version.release[:2]
    older = [version for version in map(Version, matrix.VERSIONS) if version.release[:2] <= series]
    below = max(older, default=Version(next(iter(matrix.VERSIONS))))
    if not matrix.is_laid_out(str(below)):
        raise ExportError(f"speculators {below} is not laid out: make matrix")
    paths = [folder / Path(tree.prefix).parent, folder / "metadata"]
    connectors = tree.root / "hs_connectors" / "src"
    paths += [connectors] if connectors.is_dir() else []
    environment = matrix.environment(str(below))
    joined = [*map(str, paths), environment["PYTHONPATH"]]
    return environment | {"PYTHONPATH": os.pathsep.join(joined), "PYTHONDONTWRITEBYTECODE": ""}


def _status(folder: Path, environment: dict[str, str]) -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "speculators_patches", "status", "--json"],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = json.loads(done.stdout)["patches"]
    table = patches.table()
    return {
        row["patch"]: row["verdict"]
        for row in rows
        if row["default"] and table[row["patch"]].package == "speculators"
    }


def _run(
    folder: Path, environment: dict[str, str], tests: str, command: tuple[str, ...]
) -> dict[str, str]:
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, *command, *_PYTEST, f"--junitxml={report}", "--rootdir", str(folder),
         tests],
        env=environment, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if not report.is_file():
        raise ExportError(f"pytest did not come to its end: {(done.stderr or done.stdout)[-800:]}")
    results = {}
    for case in xml.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = {child.tag for child in case}
        bad = kinds & {"failure", "error"}
        results[name] = "failed" if bad else "skipped" if "skipped" in kinds else "passed"
    return results


def report(found: Comparison) -> tuple[str, bool]:
    """What to print, and whether every difference is explained and every explanation holds."""
    explained = expected()
    lines = [
        f"speculators {found.version}: {len(found.without)} tests; patches in force: "
        f"{', '.join(found.active) or 'none'}",
    ]
    if found.refused:
        lines.append(f"  source unknown, left out: {', '.join(found.refused)}")
    for name, overlay in (("without", False), ("with", True)):
        counts = [f"{found.count(kind, overlay=overlay)} {kind}"
                  for kind in ("passed", "failed", "skipped")]  # fmt: skip
        lines.append(f"  {name} the overlay: {', '.join(counts)}")
    good = True
    for test in found.worse():
        reasons = [item for item in explained if item.covers(test, found.version)]
        good = good and bool(reasons)
        why = f"{reasons[0].patch}: {reasons[0].why}" if reasons else "NOT EXPLAINED"
        lines.append(f"  differs: {test}: {why}")
    lines += [f"  passes only with the overlay: {test}" for test in found.better()]
    worse = found.worse()
    for item in explained:
        applies = item.versions.contains(found.version, prereleases=True)
        if applies and item.patch in found.active and not any(
            item.covers(test, found.version) for test in worse
        ):  # fmt: skip
            good = False
            lines.append(f"  NO DIFFERENCE any more: {item.test} (in {EXPECTED.name})")
    return "\n".join(lines), good


def main() -> None:
    """Entry point; exit 1 where a difference is not explained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tree", type=Path)
    parser.add_argument("--tree-version")
    parser.add_argument("--tests", default="tests/unit")
    parser.add_argument("--skip", default="", help="patches to leave out, with commas")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        tree = find(options.tree, "speculators", options.tree_version)
        found = compare(tree, options.tests, tuple(filter(None, options.skip.split(","))))
    except ExportError as error:
        sys.exit(f"upstream-tests: {error}")
    text, good = report(found)
    print(text)
    if options.json:
        content = {
            "version": str(found.version),
            "active": found.active,
            "refused": found.refused,
            "without": found.without,
            "with": found.with_overlay,
        }
        options.json.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
