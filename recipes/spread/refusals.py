"""What can't work on several GPUs or machines, refused before it costs: a sentence each."""

from __future__ import annotations

import math
import os
import socket
from fractions import Fraction
from pathlib import Path

from recipes import plan_costs
from recipes.config import ConfigError, Recipe
from recipes.config_checks import requests_of
from recipes.spread import interfaces
from recipes.spread.placement import Placement, place
from recipes.train_memory import device_bytes
from recipes.vllm import leftovers
from recipes.vllm.mooncake import READ_S

GPU_BYTES = {"dgx-spark": 121e9, "h100": 80e9}
STORED_ROWS = 2  # that a producer's Mooncake memory must hold
# Filesystems that one machine alone sees.
_LOCAL_FILESYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs", "f2fs"}


def token_bytes(recipe: Recipe) -> int:
    """Bytes of hidden states for one token."""
    return plan_costs.HIDDEN_BYTES * (len(recipe.target_layers) + 1)


def check(recipe: Recipe, preset: str, run_dir: Path) -> Placement:
    """The placement of a run that can work.

    Raises:
        ConfigError: it can't; the sentence says why and what to change.
    """
    if preset == "miniature" and len(recipe.hosts) > 1:
        raise ConfigError("the miniature runs on one machine: leave hosts out.")
    placement = place(recipe)
    if preset == "miniature":
        return placement
    if recipe.hidden_states == "offline" and recipe.transfer == "mooncake":
        raise ConfigError(
            "transfer=mooncake keeps hidden states in memory while training consumes them, and "
            "hidden_states=offline wants them as files: take transfer=file, or online."
        )
    _check_memory(recipe, placement, GPU_BYTES[preset])
    _check_link(recipe, placement)
    _check_store(recipe, placement, GPU_BYTES[preset] if preset == "dgx-spark" else None)
    if placement.is_spread:
        _check_addresses(recipe, placement)
        _check_folder(recipe, run_dir)
    return placement


def _check_memory(recipe: Recipe, placement: Placement, gpu: float) -> None:
    vllm = recipe.train_vllm_share * gpu
    body = plan_costs.BODY_FP8_BYTES
    if recipe.body == Recipe().body and vllm < body:
        raise ConfigError(
            f"train_vllm_share={recipe.train_vllm_share} of {gpu / 1e9:.0f} GB is "
            f"{vllm / 1e9:.0f} GB, and the body's weights alone take {body / 1e9:.0f} GB: raise it."
        )
    shared = [host for host in placement.hosts if host.shared]
    trainer = device_bytes(recipe.ttt_steps, recipe.seq_len)
    if shared and not placement.offline and vllm + trainer > gpu:
        raise ConfigError(
            f"on {shared[0].name} a trainer (about {trainer / 1e9:.1f} GB) and vLLM "
            f"({vllm / 1e9:.0f} GB, train_vllm_share={recipe.train_vllm_share}) do not fit on one "
            f"GPU of {gpu / 1e9:.0f} GB: lower the share, or set host_gpus so that each has one."
        )


def _check_link(recipe: Recipe, placement: Placement) -> None:
    crosses = recipe.transfer == "file" or placement.crossing  # files lie in a shared folder
    if not (placement.is_spread and crosses) or placement.offline:
        return
    seconds = recipe.seq_len * token_bytes(recipe) * 8 / (recipe.network_gbit * 1e9)
    with_mooncake = " and take transfer=mooncake" if recipe.transfer == "file" else ""
    if seconds > recipe.request_timeout:
        raise ConfigError(
            f"network_gbit={recipe.network_gbit}: the hidden states of one row of {recipe.seq_len} "
            f"tokens take {seconds:.0f} s over it, longer than request_timeout="
            f"{recipe.request_timeout:g}, so no row would ever arrive: take a faster link, or put "
            f"producers beside the trainers{with_mooncake}."
        )
    _check_reads(recipe, placement)


def _check_reads(recipe: Recipe, placement: Placement) -> None:
    """Workers read side by side, and over a full link each takes as long as all of them.

    The link is that of a machine that trains, or that of one whose producers many machines read.
    """
    mooncake = recipe.transfer == "mooncake"
    limit = READ_S if mooncake else leftovers.longest(recipe.request_timeout)
    row = recipe.seq_len * token_bytes(recipe) * 8 / (recipe.network_gbit * 1e9)
    # Trainers times the share of their rows that crosses the link; files lie in a shared folder.
    who = "workers of one machine read at once"
    crossing = Fraction(max(host.trainers for host in placement.hosts))
    if mooncake:
        trainers = sum(host.trainers for host in placement.hosts)
        shares = [
            Fraction(len(host.producers), sum(len(one.producers) for one in placement.hosts))
            for host in placement.hosts
        ]
        links = list(zip(placement.hosts, shares, strict=True))
        crossing = max(host.trainers * (1 - share) for host, share in links)
        sent = max((trainers - host.trainers) * share for host, share in links)
        if sent > crossing:
            who, crossing = "workers read at once from one machine", sent
    at_once = math.ceil(crossing * requests_of(recipe))
    if row * at_once <= limit:
        return
    then = (
        f"Mooncake gives a read up after {limit:.0f} s"
        if mooncake
        else f"a file of {limit:.0f} s is swept away as left over"
    )
    fewer = int(int(limit / row) / crossing)
    enough = recipe.trainers * fewer >= max(recipe.producers, len(recipe.train_endpoints))
    remedy = f"--set num_workers={fewer}, or " if fewer and enough else ""
    raise ConfigError(
        f"network_gbit={recipe.network_gbit}: the {at_once} rows that {who} take "
        f"{row * at_once:.0f} s over it, and {then}, so that "
        f"rows would be asked for again and again: {remedy}take a faster link, or put producers "
        f"beside the trainers{'' if mooncake else ' and take transfer=mooncake'}."
    )


def check_is(hosts: tuple[str, ...], number: int) -> None:
    """This machine is not known to be another one of `hosts` than `number`.

    Two machines with one number would both wait for what neither starts.

    Raises:
        ConfigError: it is.
    """
    here = [n for n, name in enumerate(hosts) if interfaces.of(name) is not None]
    if here and number not in here:
        told = "leads and runs `all`" if number == 0 else f"is number {number}"
        raise ConfigError(
            f"this machine is {hosts[here[0]]}, number {here[0]} of hosts, and {hosts[number]} "
            f"{told}: here it is `{'all' if here[0] == 0 else f'join --number {here[0]}'}`."
        )


def _check_addresses(recipe: Recipe, placement: Placement) -> None:
    """No machine twice, and none by an address at which the others would find themselves.

    Debian gives a machine's own name 127.0.1.1: what it starts there nobody else reaches, which
    does not matter where nobody has to (`_reached`). Machines that all are 127.x.y.z are one
    machine that plays several, as in tests.
    """
    hosts = recipe.hosts
    known = {name: found for name in hosts if (found := interfaces.address(name))}
    for name, found in known.items():
        if twice := [other for other in known if other != name and known[other] == found]:
            raise ConfigError(
                f"hosts names {name} and {twice[0]}, which are one machine here ({found}): each "
                "machine once, host_gpus for its GPUs."
            )
    local = {name: found for name, found in known.items() if interfaces.is_own(found)}
    if local == {name: name for name in hosts}:
        return
    reached = _reached(recipe, placement)
    local = {name: at for name, at in local.items() if name == at or name in reached}
    if not local:
        return
    name, found = next(iter(local.items()))
    others = [host for host in hosts if host not in local]
    instead = interfaces.towards(others[0]) if others else None
    raise ConfigError(
        f"hosts names {name}, which is {found} on this machine: what it starts there the others "
        f"cannot reach. Give the address at which they do{f', {instead}' if instead else ''}, or "
        f"mend the entry of {name} in /etc/hosts."
    )


def _reached(recipe: Recipe, placement: Placement) -> set[str]:
    """Machines on which something is started that others must reach."""
    reached = {host.name for host in placement.hosts if host.producers}
    if len(placement.trainer_hosts) > 1:
        reached |= {host.name for host in placement.trainer_hosts}
    if recipe.transfer == "mooncake" and not recipe.mooncake_master:
        reached.add(placement.hosts[0].name)
    return reached


def _check_store(recipe: Recipe, placement: Placement, unified: float | None) -> None:
    """As the connector at a server's start (`recipes.mooncake_hidden_states`), before it costs.

    Args:
        unified: bytes of a machine whose memory is its GPU's; None: the host's is not known here.
    """
    if recipe.transfer != "mooncake":
        return
    segment = recipe.mooncake_segment_gib * 2**30
    row = (recipe.train_max_model_len or recipe.seq_len + 1) * token_bytes(recipe)
    if segment < STORED_ROWS * row:
        raise ConfigError(
            f"mooncake_segment_gib={recipe.mooncake_segment_gib:g} holds fewer than {STORED_ROWS} "
            f"rows of hidden states ({row / 1e9:.2g} GB each), and readers would wait for each "
            "other for ever: raise it, or lower seq_len."
        )
    most = max(len(host.producers) for host in placement.hosts)
    vllm = recipe.train_vllm_share * (unified or 0)
    if unified is not None and vllm + most * segment > unified:
        raise ConfigError(
            f"mooncake_segment_gib={recipe.mooncake_segment_gib:g} for {most} on a machine and "
            f"vLLM ({vllm / 1e9:.0f} GB, train_vllm_share={recipe.train_vllm_share}) do not fit "
            f"into its {unified / 1e9:.0f} GB of memory: lower one."
        )


def _check_folder(recipe: Recipe, run_dir: Path) -> None:
    """Only where the plan is made on one of the machines can the folder be looked at."""
    if socket.gethostname().partition(".")[0] not in {h.partition(".")[0] for h in recipe.hosts}:
        return
    kind = filesystem(run_dir)
    if kind in _LOCAL_FILESYSTEMS:
        raise ConfigError(
            f"{run_dir} is on {kind}, which the other hosts don't see; all of them read and write "
            "the run folder: give a --run-dir on storage that they share (NFS, Lustre, ...)."
        )


def filesystem(path: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the filesystem that holds `path`, or will; "" where it can't be told."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    path = path.resolve()
    try:
        rows = [line.split() for line in mounts.read_text("utf-8").splitlines()]
    except OSError:
        return ""
    best, kind = "", ""
    for _, where, what, *_ in rows:
        inside = os.path.commonpath([str(path), where]) == where
        if inside and len(where) >= len(best):
            best, kind = where, what
    return kind
