"""What a launcher's files are made of: settings, places, and the script that each machine runs."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.config import Recipe
from recipes.spread import torchrun
from recipes.spread.launch import inputs
from recipes.spread.placement import Placement, leader_serves, place

# In every file, by which `plan` knows its own.
MARK = "python -m recipes.gemma4_abliterated plan"
# The checkout that this runs from: machines need one at the same place, or say where.
PROJECT = Path(__file__).resolve().parents[3]
_PROGRAM = "python -m recipes.gemma4_abliterated"
# What goes on with on one machine after the training. `trainers` stays, as another number would
# train again; nothing of it starts, so that host_gpus only has to be enough for the check.
ALONE = "--set hosts= --set host_gpus={}"


@dataclass(frozen=True)
class Job:
    """One run to be launched.

    Attributes:
        run_dir: on storage that all machines share.
        folder: where the files go.
    """

    recipe: Recipe
    preset: str
    run_dir: Path
    folder: Path

    @property
    def placement(self) -> Placement:
        return place(self.recipe)

    @property
    def machines(self) -> int:
        return len(self.placement.hosts)

    @property
    def gpus(self) -> int:
        """GPUs of each machine; all are asked for alike."""
        return self.recipe.host_gpus or max(host.gpus for host in self.placement.hosts)

    @property
    def settings(self) -> dict[str, Any]:
        """All but `hosts`, which are known when the machines are; paths in full."""
        return {n: value for n, value in self.portable.to_json().items() if n != "hosts"}

    @property
    def portable(self) -> Recipe:
        """The recipe as it can be read from any working directory."""
        full: dict[str, Any] = {n: str(path) for n, path in inputs.paths(self.recipe).items()}
        return dataclasses.replace(self.recipe, **full)

    def header(self, launcher: str, *lines: str) -> str:
        """The comment at the top of a file."""
        words = [f"Written by `{MARK} --launcher {launcher}`; edit it as you like.", *lines]
        return "\n".join(f"# {word}".rstrip() for word in words)

    def who(self) -> str:
        """Who runs where, for a comment."""
        return "; ".join(
            f"machine {number}: {host.trainers} trainers, {len(host.producers)} producers"
            for number, host in enumerate(self.placement.hosts)
        )


def machine_script(job: Job, launcher: str) -> str:
    """machine.sh: what one machine runs. The first leads, the others join."""
    common = f'--preset {job.preset} --config "$here/settings.json" --run-dir "$run_dir"'
    head = job.header(
        launcher,
        "",
        "What one machine runs:  bash machine.sh NUMBER HOSTS RUN_DIR",
        "NUMBER is its place in HOSTS (names or addresses, separated by commas), RUN_DIR a folder",
        "that all of them share. Run again, it goes on where the run was.",
        job.who(),
    )
    start = "\n".join(
        [
            "#!/usr/bin/env bash",
            head,
            "set -euo pipefail",
            'here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)',
            "number=$1 hosts=$2 run_dir=$3",
            "",
            "# The checkout with its .venv, at the same place on every machine.",
            f'cd "${{PROJECT:-{PROJECT}}}"',
            ". .venv/bin/activate",
            "",
            "# torchrun: restarted ranks don't meet in the store of the dead ones; time to save.",
            *torchrun.shell(torchrun.ENVIRONMENT),
            "",
        ]
    )
    if job.machines == 1:
        return start + (
            "# Every stage that is not done yet, in order; UNTIL=train ends with the drafter.\n"
            f'exec {_PROGRAM} all --until "${{UNTIL:-serve}}" {common}\n'
        )
    processes = job.recipe.trainers + job.recipe.producers
    own = (
        f"  # Its own producers; they end with the run.\n"
        f'  {_PROGRAM} join --number 0 {common} --set "hosts=$hosts" &\n'
        if leader_serves(job.recipe)
        else ""
    )
    return start + (
        'if [ "$number" = 0 ]; then\n'
        f"{own}"
        "  # Up to the trained drafter; bench and serve need one machine:\n"
        f"  #   {_PROGRAM} all --run-dir RUN_DIR {ALONE.format(processes)}\n"
        f'  exec {_PROGRAM} all --until "${{UNTIL:-train}}" {common} --set "hosts=$hosts"\n'
        "fi\n"
        f'exec {_PROGRAM} join --number "$number" {common} --set "hosts=$hosts"\n'
    )


# After `job & child=$!`: its exit code in `code`, whatever signals the shell gets meanwhile.
# The first wait comes before any look, as a job that has ended is no process any more.
AWAIT = """\
wait "$child" && code=0 || code=$?
while kill -0 "$child" 2>/dev/null; do
  wait "$child" && code=0 || code=$?
done"""


def extras(job: Job) -> str:
    """The project's extras that a machine installs."""
    return "gpu,mooncake" if job.recipe.transfer == "mooncake" else "gpu"


def packages(job: Job) -> str:
    """The distribution's packages that a machine installs; "" = none."""
    return "libibverbs1 librdmacm1" if job.recipe.transfer == "mooncake" else ""


def scalar(text: str) -> str:
    """A YAML string, quoted only where it has to be (a space, a colon before one, ...)."""
    return text if re.fullmatch(r"[\w./~$][\w./~${}:-]*", text, re.ASCII) else json.dumps(text)


def quoted(path: Path) -> str:
    return shlex.quote(str(path))
