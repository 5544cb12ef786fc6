"""torchrun by itself: the trainers alone, for machines that something else starts."""

from __future__ import annotations

import shlex
import textwrap

from recipes import upstream
from recipes.config import ConfigError
from recipes.extract_stage import extracted
from recipes.run_folder import RunFolder
from recipes.server_specs import store_of
from recipes.spread import torchrun
from recipes.spread.launch.job import AWAIT, PROJECT, Job

ATTEMPTS = 100


def files(job: Job) -> dict[str, str]:
    """torchrun.sh.

    Raises:
        ConfigError: there is one trainer, or nobody produces hidden states or runs their store.
    """
    recipe = job.portable
    if recipe.trainers == 1:
        raise ConfigError("trainers=1 needs no torchrun: --set trainers=K for K of them.")
    offline = recipe.hidden_states == "offline"
    # Not the addresses at which `join` would serve: here nobody starts it.
    endpoint = None if offline else recipe.train_endpoint
    if endpoint == "":
        raise ConfigError(
            "the launcher torchrun starts trainers alone: --set train_endpoint=URL for the vLLM "
            "that produces, or hidden_states=offline."
        )
    store = store_of(recipe)
    if store is not None and not recipe.mooncake_master:
        raise ConfigError(
            "the launcher torchrun starts trainers alone, and with transfer=mooncake they need a "
            "master: --set mooncake_master=HOST:PORT for one that you run, or transfer=file."
        )
    run = RunFolder(job.run_dir)
    states = extracted(run)
    cases = []
    for number, host in enumerate(job.placement.trainer_hosts):
        argv = upstream.train(
            recipe,
            data=run.stage_dir("prepare") / "dataset",
            output=run.stage_dir("train") / "checkpoints",
            logs=run.stage_dir("train") / "logs",
            endpoint=endpoint,
            cached=states.folder if offline else None,
            incomplete=offline and states.missing > 0,
            accelerator=True,
            store=store,
            number=number,
        )
        cases.append(f"  {number}) # {host.name}\n    command=(\n{_lines(argv[1:])}\n    ) ;;")
    head = job.header(
        "torchrun",
        "",
        "The trainers of one machine:  bash torchrun.sh [NUMBER]",
        "NUMBER is the machine's place in `hosts`, 0 where there is one. `prepare` must be done in",
        f"{job.run_dir}, which all machines share. The same command goes on after any end.",
        job.who(),
    )
    text = f"""#!/usr/bin/env bash
{head}
set -euo pipefail
number=${{1:-0}}
cd "${{PROJECT:-{PROJECT}}}"
python=${{PYTHON:-python}}
[ -n "${{PYTHON:-}}" ] || . .venv/bin/activate

# Restarted ranks must not meet in the store of the dead ones; time to save on the way down.
{chr(10).join(torchrun.shell(torchrun.ENVIRONMENT | upstream.patches_environment(recipe)))}
# Between machines: the interface that carries their names, where gloo guesses wrong.
# export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

case $number in
{chr(10).join(cases)}
  *) echo "machine $number is none of the {len(cases)} that train" >&2; exit 2 ;;
esac

# torchrun starts its ranks again by itself when one dies (--max-restarts). When it ends in failure,
# say because another machine was preempted, it is started again, but not after a signal.
told=
on_signal() {{ told=$1; kill -TERM "$child" 2>/dev/null || true; }}
trap 'on_signal 143' TERM
trap 'on_signal 130' INT
for attempt in $(seq 1 "${{ATTEMPTS:-{ATTEMPTS}}}"); do
  "$python" "${{command[@]}}" &
  child=$!
{textwrap.indent(AWAIT, "  ")}
  [ "$code" != 0 ] || exit 0
  [ -z "$told" ] || exit "$told"
  echo "torchrun.sh: attempt $attempt ended with exit code $code; the next goes on from the last" \\
    "checkpoint" >&2
  sleep "${{PAUSE_S:-10}}"
  [ -z "$told" ] || exit "$told"
done
exit "$code"
"""
    return {"torchrun.sh": text}


def _lines(argv: list[str]) -> str:
    """Words of a bash array, a flag and its values on one line."""
    lines: list[list[str]] = []
    for word in argv:
        if word.startswith("-") or not lines:
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return "\n".join("      " + " ".join(line) for line in lines)
