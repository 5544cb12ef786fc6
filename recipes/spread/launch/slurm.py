"""SLURM: one batch job, requeued by itself before its time is up and by SLURM after preemption."""

from __future__ import annotations

from recipes.spread.launch.job import AWAIT, Job, machine_script, quoted


def files(job: Job) -> dict[str, str]:
    """job.sbatch and machine.sh."""
    head = job.header(
        "slurm",
        "",
        f"  sbatch {job.folder / 'job.sbatch'}",
        "",
        "The run folder and the checkout must be on storage that all nodes share.",
        "Producers listen on their nodes without a key: a network of yours alone.",
        job.who(),
    )
    text = f"""#!/usr/bin/env bash
{head}
#SBATCH --job-name=speculators
#SBATCH --nodes={job.machines}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={job.gpus}
#SBATCH --exclusive
#SBATCH --time=24:00:00
# After preemption, or when a node failed, SLURM runs this same script again.
#SBATCH --requeue
# Five minutes before the time is up this script is told, saves, and queues itself again.
#SBATCH --signal=B:TERM@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# #SBATCH --partition=... --account=...

set -euo pipefail
folder=${{LAUNCH_FOLDER:-{quoted(job.folder)}}}
run_dir=${{RUN_DIR:-{quoted(job.run_dir)}}}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd,)
echo "$(date): start number ${{SLURM_RESTART_COUNT:-0}} on $hosts"

# One task a node; --kill-on-bad-exit ends all of them when one fails for good.
srun --kill-on-bad-exit=1 bash -c 'exec bash "$0/machine.sh" "$SLURM_NODEID" "$1" "$2"' \\
  "$folder" "$hosts" "$run_dir" &
child=$!

again=
on_term() {{
  again=yes
  echo "$(date): told to end; a checkpoint is saved and the job queued again"
  # To the tasks; srun itself would kill them when it gets a SIGTERM.
  scancel --signal=TERM "$SLURM_JOB_ID" || true
}}
trap on_term TERM

# `wait` returns at the signal, and is then called again until the step has ended.
{AWAIT}
if [ -n "$again" ] && [ "$code" != 0 ]; then
  scontrol requeue "$SLURM_JOB_ID" || true
fi
exit "$code"
"""
    return {"job.sbatch": text, "machine.sh": machine_script(job, "slurm")}
