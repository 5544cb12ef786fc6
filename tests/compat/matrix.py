"""Lays out the upstream versions that the compatibility tests run against.

    python -m tests.compat.matrix            # every version
    python -m tests.compat.matrix 0.5.0      # one

A version is a folder `.matrix/<version>/` that holds only what differs from the main environment:
speculators itself, its own hs-connectors, and the newest transformers that it allows. Put in front
of the main environment with PYTHONPATH, its packages and its metadata win. That takes seconds and
megabytes a version instead of an environment with its own torch.

What this does not honour: the versions' caps on other packages, torch above all. speculators 0.5.0
asks for torch <= 2.11 and 0.6.0 for torch <= 2.12; both are tested here with the main environment's
torch (2.13), and every version with its datasets.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("MATRIX_DIR", ROOT / ".matrix"))

# What transformers before 5.17 needs older than the main environment has.
_HUB = "huggingface-hub==1.31.0"
_TOKENIZERS = "tokenizers==0.22.2"

# speculators version -> what else is laid out with it.
VERSIONS: dict[str, tuple[str, ...]] = {
    "0.5.0": ("transformers==5.6.2", _HUB, _TOKENIZERS),  # transformers < 5.7
    "0.6.0.2": ("transformers==5.10.4", _HUB, _TOKENIZERS),  # < 5.11
    "0.7.0.2": ("transformers==5.14.1", _HUB, _TOKENIZERS),  # < 5.15
    "0.8.1": ("transformers==5.16.1", _HUB, "hs-connectors==0.8.1"),  # < 5.17
    "0.9.0": ("transformers==5.19.0", "hs-connectors==0.9.0"),  # <= 5.19
}


def layout(version: str) -> Path:
    """The folder of one version; it exists only when it is complete."""
    return FOLDER / version


def is_laid_out(version: str) -> bool:
    """True if the folder holds what `VERSIONS` asks for today."""
    marker = layout(version) / ".complete"
    return marker.is_file() and marker.read_text() == _wanted(version)


def lay_out(version: str) -> None:
    """Installs one version beside the others; a folder from an earlier table is replaced."""
    if is_laid_out(version):
        return
    staging = FOLDER / f".{version}.{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run(
        [
            *command,
            "--disable-pip-version-check",
            "--target",
            str(staging),
            *_wanted(version).split(),
        ],
        check=True,
    )
    (staging / ".complete").write_text(_wanted(version))
    shutil.rmtree(layout(version), ignore_errors=True)
    staging.rename(layout(version))


def environment(version: str) -> dict[str, str]:
    """This process's environment with that version in front, offline and on the CPU."""
    paths = [str(layout(version)), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def _wanted(version: str) -> str:
    return " ".join((f"speculators=={version}", *VERSIONS[version]))


def main() -> None:
    """Lays out the versions named on the command line, or all."""
    names = sys.argv[1:] or list(VERSIONS)
    unknown = [name for name in names if name not in VERSIONS]
    if unknown:
        sys.exit(f"not in the matrix: {', '.join(unknown)}; it has {', '.join(VERSIONS)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            lay_out(name)
        except subprocess.CalledProcessError as error:
            sys.exit(f"pip could not lay out speculators {name} (exit code {error.returncode})")
        print(f"speculators {name}: {layout(name)}")


if __name__ == "__main__":
    main()
