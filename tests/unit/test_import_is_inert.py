"""Importing the packages imports nothing heavy and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "speculators", "transformers", "vllm", "datasets", "matplotlib", "openai")

CHECK = """
import multiprocessing.spawn, subprocess, sys
before = multiprocessing.spawn.get_preparation_data, subprocess.Popen.__init__, sys.excepthook
path, meta = list(sys.path), list(sys.meta_path)
import importlib
for name in {modules!r}:
    importlib.import_module(name)
after = multiprocessing.spawn.get_preparation_data, subprocess.Popen.__init__, sys.excepthook
assert before == after, "importing changed multiprocessing, subprocess or the excepthook"
assert (path, meta) == (sys.path, sys.meta_path), "importing changed how modules are found"
print(*sorted({{name.partition(".")[0] for name in sys.modules}} & {heavy!r}))
"""


def heavy_imports_of(*modules: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHECK.format(modules=modules, heavy=set(HEAVY))],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("package", ["speculators_patches", "recipes"])
def test_importing_a_package_is_cheap_and_changes_nothing(package: str) -> None:
    assert heavy_imports_of(package) == []


def test_reading_every_record_imports_nothing_heavy() -> None:
    files = (ROOT / "speculators_patches" / "patches").glob("*.py")
    names = [f"speculators_patches.patches.{path.stem}" for path in files]
    assert heavy_imports_of("speculators_patches.patches", *names) == []


def test_the_command_line_imports_nothing_heavy() -> None:
    own = ("__main__", "launcher", "workers", "command_line", "rejoin", "report_table")
    assert heavy_imports_of(*(f"speculators_patches.{name}" for name in own)) == []


def test_the_check_sees_a_heavy_import() -> None:
    assert "openai" in heavy_imports_of("openai")
