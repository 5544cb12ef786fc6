"""SkyPilot: a managed job on spot machines, which SkyPilot replaces and starts again."""

from __future__ import annotations

import shlex

from recipes.config import ConfigError
from recipes.spread.launch import inputs
from recipes.spread.launch.job import (
    PROJECT,
    Job,
    extras,
    machine_script,
    packages,
    quoted,
    scalar,
)

VOLUME = "speculators-runs"
_RUNS = "/runs"  # where it is on each machine
_ACCELERATORS = {"h100": "H100"}


def files(job: Job) -> dict[str, str]:
    """task.yaml, volume.yaml and machine.sh.

    Raises:
        ConfigError: the preset's machine can't be rented, or lacks what a setting names.
    """
    if job.preset not in _ACCELERATORS:
        raise ConfigError(
            f"SkyPilot rents machines, and none is a {job.preset}: take --preset h100, or the "
            "launcher slurm or torchrun for machines of your own."
        )
    head = job.header(
        "skypilot",
        "",
        f"  sky volumes apply {quoted(job.folder / 'volume.yaml')}  # once: the storage that stays",
        f"  sky jobs launch {quoted(job.folder / 'task.yaml')}  # a managed job",
        "",
        "A machine that is preempted is replaced, and `run` starts again on all of them: every",
        "stage goes on where it was, training at its last checkpoint.",
        job.who(),
    )
    run_dir = shlex.quote(f"{_RUNS}/{job.run_dir.name}")
    mooncake = (
        "  # For transfer=mooncake.\n"
        f"  $(command -v sudo) apt-get update && $(command -v sudo) apt-get install -y "
        f"{packages(job)}\n"
        f"  .venv/bin/python -m pip install --editable '.[{extras(job)}]'\n"
        if packages(job)
        else ""
    )
    text = f"""{head}
name: speculators

num_nodes: {job.machines}

resources:
  accelerators: {_ACCELERATORS[job.preset]}:{job.gpus}
  # Spot machines may be preempted; set it to false for machines that stay.
  use_spot: true
  disk_size: 256
  job_recovery:
    # Ends of `run` that are no preemption: tried again so often.
    max_restarts_on_errors: 2

# The run folder must outlive machines, be seen by all of them, and keep renames and locks as a
# disk does: a volume does, a bucket mounted as a folder does not.
volumes:
  {_RUNS}: {VOLUME}

# For models behind a licence: sky jobs launch --secret HF_TOKEN ..., which takes it from the shell.
secrets:
  HF_TOKEN: ""

workdir: {scalar(str(PROJECT))}

file_mounts:
  ~/launch: {scalar(str(job.folder))}
{_uploads(job)}
setup: |
  # vLLM and speculators, in the versions of this project's extra [gpu].
  python3 recipes/setup_venv.py .venv
{mooncake}
run: |
  # The first machine leads, the others join it; producers listen on their private addresses.
  hosts=$(echo "$SKYPILOT_NODE_IPS" | paste -sd, -)
  export PROJECT="$PWD"
  exec bash ~/launch/machine.sh "$SKYPILOT_NODE_RANK" "$hosts" {run_dir}
"""
    volume = f"""{job.header("skypilot", "", "The storage of runs: on Kubernetes, for all nodes.")}
name: {VOLUME}
type: k8s-pvc
infra: k8s
size: 500Gi
config:
  access_mode: ReadWriteMany
"""
    return {
        "task.yaml": text,
        "volume.yaml": volume,
        "machine.sh": machine_script(job, "skypilot"),
    }


def _uploads(job: Job) -> str:
    """Entries of file_mounts for what settings name on this machine, at the same path there."""
    entries = {}
    for name, path in inputs.paths(job.recipe).items():
        if path.is_relative_to(_RUNS):
            continue  # on the volume
        if not path.exists():
            raise ConfigError(
                f"{name}={path} is not on this machine, from which SkyPilot uploads what rented "
                f"ones need: give a path that is, one on the volume ({_RUNS}/...), or a hub id."
            )
        inputs.check_copied(name, path, "SkyPilot")
        entries[path] = f"  {scalar(str(path))}: {scalar(str(path.resolve()))}\n"
    comment = "  # What the settings name on this machine; a hub id is downloaded there instead.\n"
    return comment + "".join(entries.values()) if entries else ""
