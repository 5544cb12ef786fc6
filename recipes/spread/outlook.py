"""What `plan` says of a run on several GPUs or machines (`refusals` says what can't work).

Figures at Gemma 4's size. What nobody has measured is called that; the settings trainer_tokens_s,
producer_tokens_s, network_gbit and disk_mb put measured values in its place.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from recipes import plan_costs
from recipes.config import ConfigError, Recipe
from recipes.config_checks import requests_of
from recipes.spread.model import Bound, Rates, bounds, crossing
from recipes.spread.placement import Host, Placement, leader_serves, place
from recipes.spread.refusals import GPU_BYTES, check, token_bytes
from recipes.train_memory import device_bytes

# 99.3 M trained parameters, gradients in float32.
GRADIENT_BYTES = 99_300_000 * 4
# Not measured: what PCIe 5 x16 carries in one direction; NVLink carries more.
EXCHANGE_BYTES_S = 50e9
OUTLOOK_GPUS = (1, 8, 64)
# For an outlook where the producers' rate is not known; an H200's was near the second.
ASSUMED_PRODUCER_TOKENS_S = (5_000.0, 30_000.0)
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
# What was measured, by whom, and what the model was off by there.
CHECKS = {
    "trainers": (RESULTS / "scale_trainers.json", "1 and 2 gloo ranks"),
    "producers": (RESULTS / "transfer.json", "1 and 2, read from or with 1 and 2 trainers"),
}


def is_several(recipe: Recipe) -> bool:
    """Whether the settings ask for more than one trainer, one producer and one machine."""
    return recipe.trainers > 1 or recipe.producers > 1 or len(recipe.hosts) > 1


def rates(recipe: Recipe, preset: str) -> Rates:
    """What the model is given; see the settings for what can be replaced."""
    tokens_s = recipe.trainer_tokens_s or _known_trainer(recipe, preset)
    placement = place(recipe)
    # On one machine files stay in memory until the disk has time; on several they cross a share.
    through_disk = recipe.transfer == "file" and placement.is_spread
    return Rates(
        step_fixed_s=0.0,
        step_token_s=1 / tokens_s,
        gradient_bytes=GRADIENT_BYTES,
        exchange_bytes_s=EXCHANGE_BYTES_S,
        network_bytes_s=recipe.network_gbit * 1e9 / 8,
        token_bytes=token_bytes(recipe),
        disk_bytes_s=recipe.disk_mb * 1e6 if through_disk else None,
        producer_tokens_s=recipe.producer_tokens_s,
        requests=requests_of(recipe),
    )


def _known_trainer(recipe: Recipe, preset: str) -> float:
    if preset == "dgx-spark":  # the published run (ttt_steps 3), extraction included: at least this
        published = plan_costs.PUBLISHED_STEPS_PER_HOUR * 4096 / 3600
        return published / max(1.0, plan_costs.step_factor(recipe.ttt_steps))
    return 4096 / plan_costs.trainer_step_s(recipe.ttt_steps)


def lines(recipe: Recipe, preset: str, run_dir: Path) -> Iterator[str]:
    """Who runs where, memory, bytes between them, the pace and what sets it, and the outlook."""
    placement = check(recipe, preset, run_dir)
    yield "who runs where"
    real = preset != "miniature"
    for host in placement.hosts:
        yield f"  {host.name}: {_host(host, placement, recipe, GPU_BYTES.get(preset))}"
    if placement.is_spread:
        yield (
            "  on each but the first: python -m recipes.gemma4_abliterated join --number N "
            f"--run-dir {run_dir} and the same settings"
        )
    if leader_serves(recipe):
        yield (
            f"  on {placement.hosts[0].name} too, beside `all`, for its own producers: python -m "
            f"recipes.gemma4_abliterated join --number 0 --run-dir {run_dir} and the same settings"
        )
    if not real:
        yield "  on a CPU all of them share its cores"
        return
    given = rates(recipe, preset)
    if preset == "dgx-spark" and recipe.trainer_tokens_s is None:
        yield (
            f"pace: at least {_known_trainer(recipe, preset):,.0f} tokens/s, from the published "
            "run (ttt_steps 3), which had producer and trainer on one GPU; what either does alone "
            "is not known, so no more is foretold (--set trainer_tokens_s=... "
            "producer_tokens_s=...)"
        )
        yield from _flow(recipe, given, placement)
        return
    if recipe.trainer_tokens_s is None:
        yield (
            f"a trainer: {_known_trainer(recipe, preset):,.0f} tokens/s "
            f"({plan_costs.step_source(recipe.ttt_steps)}; --set trainer_tokens_s=...)"
        )
    yield from _flow(recipe, given, placement)
    yield from _exchange(recipe, given, placement)
    yield from _outlook(recipe, given)
    yield f"  {checked()}"


def _host(host: Host, placement: Placement, recipe: Recipe, gpu: float | None) -> str:
    parts = []
    if host.trainers:
        size = device_bytes(recipe.ttt_steps, recipe.seq_len)
        memory = f" (about {size / 1e9:.1f} GB each)" if gpu else ""
        where = f" on GPU {_range(range(host.trainers))}" if gpu else ""
        parts.append(f"{_count(host.trainers, 'trainer')}{where}{memory}")
    if host.producers:
        size = (gpu or 0) * recipe.train_vllm_share / 1e9
        memory = f" ({size:.0f} of {(gpu or 0) / 1e9:.0f} GB each)" if gpu else ""
        where = f" on GPU {_range(host.producers)}" if gpu else ""
        parts.append(f"{_count(len(host.producers), 'producer')}{where}{memory}")
    if host.shared and gpu:
        when = "in turn" if placement.offline else "together"
        parts.append(f"{_count(len(host.shared), 'GPU')} used {when}")
    if host is placement.hosts[0] and placement.is_spread:
        parts.append("leads")
    return ", ".join(parts)


def _flow(recipe: Recipe, given: Rates, placement: Placement) -> Iterator[str]:
    limits = bounds(given, placement, recipe.seq_len)
    if placement.offline:
        yield "hidden states: files first, so nothing flows while training"
        return
    first = limits[0]
    size = given.token_bytes
    yield (
        f"hidden states: {size / 1000:.1f} kB a token; at {_pace(first)} "
        f"{first.tokens_s * size / 1e9:.2f} GB/s"
        + (
            f", {100 * crossing(given, placement):.0f} % of it between machines"
            if placement.is_spread
            else ""
        )
    )
    yield f"held back by: {first.what}; limits in tokens/s: " + ", ".join(
        f"{one.what} {one.tokens_s:,.0f}" for one in limits
    )
    if placement.is_spread:
        disk = f", disk_mb={recipe.disk_mb:g}" if given.disk_bytes_s is not None else ""
        yield f"  as set, not measured: network_gbit={recipe.network_gbit:g}{disk}"
    if given.producer_tokens_s is None:
        low, high = plan_costs.PRODUCER_TOKENS_S
        yield (
            f"  producers: not measured on this machine (--set producer_tokens_s=...); an H200's "
            f"gave {low:,} to {high:,} tokens/s to 12 workers, files, one GPU"
        )
    network = next((one for one in limits if one.what == "network"), None)
    if network is None:
        return
    others = min(one.tokens_s for one in limits if one.what not in ("network", "disk"))
    if network.tokens_s >= others:
        yield f"network: {recipe.network_gbit:g} Gbit/s carries it"
    else:
        needed = recipe.network_gbit * others / network.tokens_s
        yield (
            f"network: {recipe.network_gbit:g} Gbit/s does not carry it: the rest would do "
            f"{others:,.0f} tokens/s, which takes {needed:.0f} Gbit/s on the busiest machine's "
            "link; training waits for it"
        )


def _exchange(recipe: Recipe, given: Rates, placement: Placement) -> Iterator[str]:
    if recipe.trainers == 1:
        return
    machines = len(placement.trainer_hosts)
    alone = given.step_s(recipe.seq_len)
    step = given.step_s(recipe.seq_len, recipe.trainers, machines)
    link = (
        f"{recipe.network_gbit:g} Gbit/s between {machines} machines"
        if machines > 1
        else f"{EXCHANGE_BYTES_S / 1e9:.0f} GB/s inside one (PCIe 5; not measured)"
    )
    yield (
        f"gradients: {GRADIENT_BYTES / 1e6:.0f} MB a step over {link}: {step:.3f} s a step for "
        f"{alone:.3f} s with one trainer, {100 * alone / step:.0f} % of linear"
    )
    yield (
        f"a step is of {recipe.trainers} x {recipe.seq_len} tokens, so there are "
        f"{plan_costs.steps_of(recipe)} of them; lr={recipe.lr:g} is not scaled"
    )


def _outlook(recipe: Recipe, given: Rates) -> Iterator[str]:
    known = given.producer_tokens_s is not None
    for assumed in (None,) if known else ASSUMED_PRODUCER_TOKENS_S:
        rate = given if assumed is None else dataclasses.replace(given, producer_tokens_s=assumed)
        title = f" if a producer gives {assumed:,.0f} tokens/s (assumed)" if assumed else ""
        yield f"best split of GPUs{title}:"
        for gpus in OUTLOOK_GPUS:
            placement, limits = best(recipe, rate, gpus)
            trainers = sum(host.trainers for host in placement.hosts)
            producers = sum(len(host.producers) for host in placement.hosts)
            later = [one for one in limits if one.tokens_s > limits[0].tokens_s]
            then = f", then {later[0].what} ({later[0].tokens_s:,.0f})" if later else ""
            yield (
                f"  {gpus} on {_count(len(placement.hosts), 'machine')}: "
                f"{_count(trainers, 'trainer')}, {_count(producers, 'producer')}: "
                f"{_pace(limits[0])}, held back by {limits[0].what}{then}"
            )


def best(recipe: Recipe, given: Rates, gpus: int) -> tuple[Placement, list[Bound]]:
    """The split of so many GPUs, eight a machine, that is fastest by the model, and its limits."""
    machines = max(1, gpus // 8)
    names = tuple(f"m{number}" for number in range(machines)) if machines > 1 else ()
    choices = []
    for trainers in range(1, max(2, gpus)):
        try:
            placement = place(
                dataclasses.replace(
                    recipe,
                    trainers=trainers,
                    producers=max(1, gpus - trainers),
                    hosts=names,
                    host_gpus=min(gpus, 8),
                    fsdp=False,
                )
            )
        except ConfigError:
            continue
        through_disk = recipe.transfer == "file" and placement.is_spread
        rate = dataclasses.replace(
            given, disk_bytes_s=recipe.disk_mb * 1e6 if through_disk else None
        )
        choices.append((placement, bounds(rate, placement, recipe.seq_len)))
    # Of equally fast ones that with the most room behind the first limit.
    return max(choices, key=lambda choice: [one.tokens_s for one in choice[1]])


def checked() -> str:
    """How far the model was off where it was checked: on rows that the fit has not seen, and on
    those it has where that is more."""
    parts = []
    for what, (path, where) in CHECKS.items():
        try:
            found = json.loads(path.read_text("utf-8"))
            errors: dict[bool, float] = {True: 0.0, False: 0.0}
            for row in found.get("model", found.get("rows")):
                errors[row["fitted"]] = max(errors[row["fitted"]], abs(row["error"]))
        except (OSError, ValueError, KeyError, TypeError):
            parts.append(f"{what} were not checked")
            continue
        fitted = (
            f" on rows that were not fitted and {100 * errors[True]:.0f} % on those that were"
            if errors[True] > errors[False]
            else ""
        )
        parts.append(
            f"{what} by at most {100 * errors[False]:.0f} %{fitted} "
            f"({where}, benchmarks/results/{path.name})"
        )
    return f"the model was off on a CPU: {'; '.join(parts)}; on a GPU it was not checked"


def _pace(bound: Bound) -> str:
    samples = bound.tokens_s / plan_costs.PUBLISHED_TOKENS_A_SAMPLE
    return f"{bound.tokens_s:,.0f} tokens/s ({samples:.1f} samples/s)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _range(gpus: range | tuple[int, ...]) -> str:
    listed = list(gpus)
    if len(listed) > 2 and listed == list(range(listed[0], listed[-1] + 1)):
        return f"{listed[0]}-{listed[-1]}"
    return ",".join(map(str, listed))
