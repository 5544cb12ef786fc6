"""Runs Python against one upstream version in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.compat import matrix

PATCHED = ("-m", "speculators_patches", "run")


def python(
    version: str,
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    in_front: Path | None = None,
    cwd: Path | None = None,
    timeout: float = 900,
) -> subprocess.CompletedProcess[str]:
    """Runs this interpreter with `version` in front, and `in_front` before that."""
    environment = matrix.environment(version) | (env or {})
    if in_front is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(in_front), environment["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment, cwd=cwd or matrix.ROOT, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def last_json(done: subprocess.CompletedProcess[str]) -> Any:
    """The JSON on the last line that a successful process printed."""
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
