"""Files that start a run with SkyPilot, SLURM, torchrun or Docker Compose: `plan --launcher`.

    python -m recipes.gemma4_abliterated plan --preset h100 --launcher slurm --out jobs

Every file says what it does and can be edited; `settings.json` beside it holds the settings. The
run folder lies on storage that all machines share, and every stage goes on where it was, so that a
machine that is preempted costs the steps since the last checkpoint: the launcher runs the same
file again. Nothing is submitted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from recipes.config import ConfigError
from recipes.run_folder import write_atomically
from recipes.spread.launch import compose, script, skypilot, slurm
from recipes.spread.launch.job import MARK, Job

LAUNCHERS: Mapping[str, Callable[[Job], dict[str, str]]] = {
    "skypilot": skypilot.files,
    "slurm": slurm.files,
    "torchrun": script.files,
    "docker-compose": compose.files,
}


def write(launcher: str, job: Job) -> list[Path]:
    """Writes the launcher's files and settings.json into `job.folder`; their paths.

    Raises:
        ConfigError: no such launcher, one that can't start this run, or a file in the way that
            was not written by this command.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(
            f"there is no launcher {launcher!r}; launchers are {', '.join(LAUNCHERS)}."
        )
    if job.preset == "miniature":
        raise ConfigError("the miniature needs no launcher: `all --preset miniature` runs it.")
    texts = LAUNCHERS[launcher](job)
    texts["settings.json"] = json.dumps(
        {"written by": MARK, "preset": job.preset, "settings": job.settings}, indent=1
    )
    for name in texts:
        _check_free(job.folder / name)
    for name, text in texts.items():
        write_atomically(job.folder / name, text.rstrip() + "\n")
        if name.endswith(".sh"):
            (job.folder / name).chmod(0o755)
    return [job.folder / name for name in texts]


def _check_free(path: Path) -> None:
    try:
        begins = path.read_text("utf-8", errors="replace")[:1000]
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise ConfigError(f"{path.parent} is not a folder; give another --out.") from None
    if MARK not in begins:
        raise ConfigError(f"{path} was not written by `plan`: move it away, or give another --out.")
