"""Runs reproductions and tests against a scratch copy, in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from speculators_patches.export.tree import Tree

OURS = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 900


@dataclass(frozen=True)
class Ran:
    """A reproduction's verdict: "defect", "ok" or "broken" (neither), and its last words."""

    verdict: str
    words: str


@dataclass(frozen=True)
class Tests:
    """How many tests passed and failed (errors included), and which failed."""

    passed: int
    failed: int
    names: tuple[str, ...] = ()


def environment(folder: Path, tree: Tree) -> dict[str, str]:
    """This process's, with the scratch copy in front and this project's folder left out.

    What a flat tree lies beside (the versions that `make matrix` lays out bring their own
    transformers) stays importable behind it.
    """
    paths = [str((folder / tree.prefix).parent)]
    if tree.is_flat:
        paths.append(str(tree.root))
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths += [path for path in inherited if path and Path(path).resolve() != OURS]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONSAFEPATH": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


# The tests first: what a reproduction leaves behind is nobody's concern any more. In one process,
# because importing torch and upstream takes longer than most of what is then done.
_RUN = """
import runpy, sys
import pytest
script, *arguments = sys.argv[1:]
pytest.main(arguments)
sys.argv = [script]
runpy.run_path(script, run_name="__main__")
"""


def run(script: Path, tests: Iterable[str], folder: Path, tree: Tree) -> tuple[Ran, Tests]:
    """Runs a reproduction (see `spec.Step` for what it prints) and tests on the scratch copy."""
    report = folder / ".git" / "tests.xml"
    report.unlink(missing_ok=True)
    arguments = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir", str(folder),
                 f"--junitxml={report}", *tests]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", _RUN, str(script), *arguments],
            cwd=folder,
            env=environment(folder, tree),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        late = f"no end within {TIME_LIMIT_S} s"
        return Ran("broken", late), Tests(0, 1, (late,))
    found = _counted(report) if report.is_file() else Tests(0, 1, ("pytest itself",))
    return _verdict(done), found


def _verdict(done: subprocess.CompletedProcess[str]) -> Ran:
    for line in reversed(done.stdout.splitlines()):
        if done.returncode == 1 and line.startswith("DEFECT:"):
            return Ran("defect", line)
        if done.returncode == 0 and line.startswith("OK:"):
            return Ran("ok", line)
    last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return Ran("broken", f"exit code {done.returncode}: {last[-1] if last else 'no output'}")


def _counted(report: Path) -> Tests:
    passed, failed = 0, []
    for case in xml.parse(report).getroot().iter("testcase"):
        if any(case.find(kind) is not None for kind in ("failure", "error")):
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is None:
            passed += 1
    return Tests(passed, len(failed), tuple(failed))


def complaints(paths: Iterable[str], folder: Path) -> Counter[str] | None:
    """What upstream's own ruff settings say of files, without line numbers; None: can't be asked.

    Compared before and after a change: another version of ruff than upstream's has its own opinion
    of what was there.
    """
    present = [path for path in paths if path.endswith(".py") and (folder / path).is_file()]
    if not (folder / "pyproject.toml").is_file():
        return None
    found: Counter[str] = Counter()
    if not present:
        return found
    # A source without its tests has no tests/__init__.py either.
    checked = _ruff(
        folder, "check", "--output-format", "json", "--extend-ignore", "INP001", *present
    )
    if checked is None:
        return None
    for item in json.loads(checked or "[]"):
        name = Path(item["filename"]).name
        # Not how many: a function that was too long stays so with one more line.
        found[f"{name}: {item['code']} {re.sub(r'[(].*', '', item['message'])}"] += 1
    for path in present:
        if _ruff(folder, "format", "--diff", path):
            found[f"{Path(path).name}: not formatted"] += 1
    return found


def _ruff(folder: Path, *words: str) -> str | None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *words, "--no-cache", "--quiet"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return None if "No module named" in done.stderr else done.stdout
