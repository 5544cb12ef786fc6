"""Docker Compose: the whole recipe in one container of one machine, restarted until it is done."""

from __future__ import annotations

import shlex
from pathlib import Path

from recipes.config import ConfigError
from recipes.spread.launch import inputs
from recipes.spread.launch.job import PROJECT, Job, extras, packages, quoted, scalar

_WORKDIR = "/project"


def files(job: Job) -> dict[str, str]:
    """compose.yaml and Dockerfile.

    Raises:
        ConfigError: the run needs more than one machine.
    """
    if job.machines > 1:
        raise ConfigError(
            f"docker-compose starts one machine's services, and hosts names {job.machines}: leave "
            "hosts out, or take the launcher slurm, skypilot or torchrun."
        )
    head = job.header(
        "docker-compose",
        "",
        f"  docker compose --file {quoted(job.folder / 'compose.yaml')} up --build --detach",
        "",
        "One container runs every stage and starts its own vLLM servers and trainers. Killed, or",
        "after a reboot, Docker starts it again and it goes on where it was.",
        job.who(),
    )
    run_dir = _escaped(shlex.quote(f"/runs/{job.run_dir.name}"))
    mounts = "".join(f"      - {mount}\n" for mount in _mounts(job))
    if mounts:
        mounts = f"      # What the settings name on this machine.\n{mounts}"
    text = f"""{head}
services:
  run:
    build:
      context: {_literal(PROJECT)}
      dockerfile: {_literal(job.folder / "Dockerfile")}
    # Done (0), or the bench refused the drafter's text (3): nothing to start again, so stay.
    command:
      - bash
      - -c
      - |
        code=0
        python -m recipes.gemma4_abliterated all --preset {job.preset} \\
          --config /launch/settings.json --run-dir {run_dir} || code=$$?
        case $$code in
          0|3) echo "ended with $$code; docker compose down removes this container"
               exec sleep infinity ;;
          *)   exit $$code ;;
        esac
    restart: unless-stopped
    # Time to save a checkpoint on `stop`.
    stop_grace_period: 3m
    # Reaps what killed servers leave.
    init: true
    # DataLoader workers and NCCL share memory between processes.
    shm_size: 16gb
    volumes:
      - {scalar(f"${{RUNS:-{_escaped(job.run_dir.parent)}}}:/runs")}
      - {_literal(job.folder, ":/launch:ro")}
{mounts}      # Models are downloaded once.
      - ${{HF_HOME:-~/.cache/huggingface}}:/root/.cache/huggingface
    environment:
      HF_TOKEN: ${{HF_TOKEN:-}}
    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              count: {job.gpus}
              capabilities: [gpu]
"""
    system = (
        f"RUN apt-get update && apt-get install -y --no-install-recommends {packages(job)} \\\n"
        "  && rm -rf /var/lib/apt/lists/*\n"
        if packages(job)
        else ""
    )
    image = f"""{job.header("docker-compose", "", "The image that compose.yaml builds.")}
FROM python:3.12-bookworm
{system}WORKDIR {_WORKDIR}
# First what changes seldom: the environment, with vLLM as the project's extra [gpu] pins it.
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY benchmarks benchmarks
COPY speculators_patches speculators_patches
RUN pip install --no-cache-dir '.[{extras(job)}]'
"""
    return {"compose.yaml": text, "Dockerfile": image}


def _mounts(job: Job) -> list[str]:
    """Files and folders of this machine that settings name, at the same path in the container.

    In the long form, in which older Compose does not make an empty folder of one that is missing;
    newer Compose has an option for that, which older refuses.
    """
    found = {}
    for name, path in inputs.paths(job.recipe).items():
        inputs.check_copied(name, path, "docker-compose")
        found[path] = (
            f"type: bind\n        source: {_literal(path.resolve())}\n        target: "
            f"{_literal(path)}\n        read_only: true"
        )
    return list(found.values())


def _escaped(text: str | Path) -> str:
    """For Compose, which puts variables in place of $NAME."""
    return str(text).replace("$", "$$")


def _literal(path: Path, more: str = "") -> str:
    return scalar(_escaped(path) + more)
