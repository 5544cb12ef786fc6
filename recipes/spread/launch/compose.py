"""Docker Compose: the whole recipe in one container of one machine, restarted until it is done."""

from __future__ import annotations

from recipes.config import ConfigError
from recipes.spread.launch.job import PROJECT, Job


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
        f"  docker compose --file {job.folder / 'compose.yaml'} up --build --detach",
        "",
        "One container runs every stage and starts its own vLLM servers and trainers. Killed, or",
        "after a reboot, Docker starts it again and it goes on where it was.",
        job.who(),
    )
    text = f"""{head}
services:
  run:
    build:
      context: {PROJECT}
      dockerfile: {job.folder / "Dockerfile"}
    # Done (0), or the bench refused the drafter's text (3): nothing to start again, so stay.
    command:
      - bash
      - -c
      - |
        code=0
        python -m recipes.gemma4_abliterated all --preset {job.preset} \\
          --config /launch/settings.json --run-dir /runs/{job.run_dir.name} || code=$$?
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
      - ${{RUNS:-{job.run_dir.parent}}}:/runs
      - {job.folder}:/launch:ro
      # Models are downloaded once.
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
    image = f"""{job.header("docker-compose", "", "The image that compose.yaml builds.")}
FROM python:3.12-bookworm
WORKDIR /project
# First what changes seldom: the environment, with vLLM as the project's extra [gpu] pins it.
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY benchmarks benchmarks
COPY speculators_patches speculators_patches
RUN pip install --no-cache-dir '.[gpu]'
"""
    return {"compose.yaml": text, "Dockerfile": image}
