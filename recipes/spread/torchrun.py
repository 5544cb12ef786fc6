"""torchrun around upstream's trainer: how many ranks, where they meet, how often they start again.

Upstream wraps the drafter in DDP, or with --fsdp-shard in FSDP2, as soon as it runs under torchrun.
The patch step_checkpoints commits a checkpoint by all ranks or none; after a rank has died torchrun
starts all of them again, and they go on from the last commit, bitwise equal to a run in which none
died. On several machines every one runs the same command, its own number excepted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from recipes.config import Recipe
from recipes.spread import interfaces
from recipes.spread.placement import Placement, place

# Without the first, ranks that torchrun started again find in the store they share with its agent
# the addresses of the dead ones, and every restart is used up on "Connection refused"
# (pytorch issues #135712 and #167288; seen with torch 2.13 and gloo). The second is the time to
# save on the way down; torch's own is 30 s.
ENVIRONMENT = {
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120",
}
# A machine that was preempted may come back within this time.
_JOIN_TIMEOUT_S = 1800


def wrapped(recipe: Recipe, command: Sequence[str], number: int = 0) -> list[str]:
    """`command` (python -m speculators_patches ...) as the trainers of machine `number` run it.

    Args:
        number: index in the setting `hosts`.

    Raises:
        ConfigError: the trainers can't be placed.
    """
    if recipe.trainers == 1:
        return list(command)
    placement = place(recipe)
    host = placement.hosts[number]
    assert list(command[:2]) == [sys.executable, "-m"]
    return [
        sys.executable, "-m", "torch.distributed.run",
        *_meeting(recipe, placement, number),
        "--nproc-per-node", str(host.trainers),
        "--max-restarts", str(recipe.max_restarts),
        *command[1:],
    ]  # fmt: skip


def _meeting(recipe: Recipe, placement: Placement, number: int) -> list[str]:
    hosts = placement.trainer_hosts
    if len(hosts) == 1:
        # Not the machine's own name, which need not resolve: the ranks would look for it in vain.
        return ["--standalone", "--local-addr", "127.0.0.1"]
    leader = placement.hosts[0].name
    settings = f"is_host={int(number == 0)},join_timeout={_JOIN_TIMEOUT_S}"
    return [
        "--nnodes", str(len(hosts)),
        "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"{leader}:{recipe.rendezvous_port}",
        "--rdzv-id", "speculators",
        "--rdzv-conf", settings,
        "--local-addr", placement.hosts[number].name,
    ]  # fmt: skip


def environment(recipe: Recipe, number: int = 0) -> dict[str, str]:
    """Variables for `wrapped`'s command; what the user has set is left alone."""
    if recipe.trainers == 1:
        return {}
    found = dict(ENVIRONMENT)
    placement = place(recipe)
    if len(placement.trainer_hosts) > 1:
        # gloo takes the interface of the machine's own name, which Debian maps to 127.0.1.1.
        interface = interfaces.of(placement.hosts[number].name)
        if interface is not None:
            found |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {name: value for name, value in found.items() if name not in os.environ}


def restarts(log: Path, offset: int = 0) -> int:
    """How many times torchrun has begun to start its ranks again, according to its log.

    Args:
        offset: bytes of the log that belong to earlier attempts.
    """
    try:
        with log.open("rb") as file:
            file.seek(offset)
            text = file.read()
    except OSError:
        return 0
    return len(re.findall(rb"failed \(exitcode: -?\d+\) local_rank", text))


def progress(recipe: Recipe, log: Path, offset: int) -> str:
    """What a display says of restarts; "" where there was none."""
    count = restarts(log, offset) if recipe.trainers > 1 else 0
    if not count:
        return ""
    times = "once" if count == 1 else f"{count} times"
    return f"a trainer died {times} of at most {recipe.max_restarts}, all started again"


def shell(environment: Mapping[str, str]) -> list[str]:
    """The variables as lines of a shell script."""
    return [f"export {name}={value}" for name, value in environment.items()]
