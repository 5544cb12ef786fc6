"""SkyPilot: a managed job on spot machines, which SkyPilot replaces and starts again."""

from __future__ import annotations

from recipes.config import ConfigError
from recipes.spread.launch.job import PROJECT, Job, machine_script

VOLUME = "speculators-runs"
_ACCELERATORS = {"h100": "H100"}


def files(job: Job) -> dict[str, str]:
    """task.yaml, volume.yaml and machine.sh.

    Raises:
        ConfigError: the preset's machine can't be rented.
    """
    if job.preset not in _ACCELERATORS:
        raise ConfigError(
            f"SkyPilot rents machines, and none is a {job.preset}: take --preset h100, or the "
            "launcher slurm or torchrun for machines of your own."
        )
    head = job.header(
        "skypilot",
        "",
        f"  sky volumes apply {job.folder / 'volume.yaml'}      # once: the storage that stays",
        f"  sky jobs launch {job.folder / 'task.yaml'}          # a managed job",
        "",
        "A machine that is preempted is replaced, and `run` starts again on all of them: every",
        "stage goes on where it was, training at its last checkpoint.",
        job.who(),
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
  /runs: {VOLUME}

workdir: {PROJECT}

file_mounts:
  ~/launch: {job.folder}

setup: |
  # vLLM and speculators, in the versions of this project's extra [gpu].
  python3 recipes/setup_venv.py .venv

run: |
  # The first machine leads, the others join it; producers listen on their private addresses.
  hosts=$(echo "$SKYPILOT_NODE_IPS" | paste -sd, -)
  export PROJECT="$PWD"
  exec bash ~/launch/machine.sh "$SKYPILOT_NODE_RANK" "$hosts" /runs/{job.run_dir.name}
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
