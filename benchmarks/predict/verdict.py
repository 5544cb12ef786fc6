"""Train, do not train, or change the serving flags first: the advice, and the arithmetic behind it.

What training will bring is not known before it is done. What is known is what there is to gain: the
way from what the drafter reaches now, served in its best way, to a drafter that is never wrong. The
verdict supposes that training closes a share of that way (`closes`), and says so.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.break_even import StepCost
from benchmarks.predict.evaluate import GREEDY, PROBABILISTIC

TRAIN, LEAVE, FLAGS = "train", "do not train", "change the serving flags first"
# Training of hours for less than this is not advised; flags cost nothing.
WORTH_TRAINING = 1.10
WORTH_A_FLAG = 1.02


@dataclass(frozen=True)
class Option:
    """One way of serving: drafting (or none), n, tokens a step, and speed over no speculation.

    `speed` is None where no step cost is known.
    """

    drafting: str
    n: int
    length: float
    speed: float | None

    @property
    def worth(self) -> float:
        return self.length if self.speed is None else self.speed


@dataclass(frozen=True)
class Verdict:
    """The advice for one temperature and workload, in a sentence, with what it rests on."""

    temperature: float
    workload: str
    verdict: str
    reason: str
    now: Option
    best: Option
    trained: Option

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cost_of(costs: dict[tuple[str, int], StepCost], drafting: str, n: int) -> StepCost | None:
    """The measured cost of a way of drafting at n; greedy's where only that was measured."""
    return costs.get((drafting, n)) or costs.get((GREEDY, n))


def judge(
    cell: dict[str, Any],
    n: int,
    drafting: str,
    costs: dict[tuple[str, int], StepCost],
    closes: float = 0.5,
) -> Verdict:
    """The verdict on one cell of `summary.summarise`.

    Args:
        n, drafting: how it is served now.
        costs: by way of drafting and n; empty: tokens a step stand in for speed.
        closes: the share of the way to a perfect drafter that training is supposed to close.
    """

    def option(way: str, depth: int, length: float) -> Option:
        cost = cost_of(costs, way, depth)
        kept = cell.get("kept_a_step", {}).get(way, {}).get(depth)
        # Of what is counted a part lies behind the answers' ends and is no speed.
        share = 1.0 if kept is None else kept / lengths[way][depth]["value"]
        speed = None if cost is None else share * length / cost.relative
        return Option(way, depth, length, speed)

    lengths = cell["tokens_a_step"]
    options = [
        option(way, int(depth), found["value"])
        for way in (GREEDY, PROBABILISTIC)
        for depth, found in lengths[way].items()
        # Without costs a deeper draft always looks better: only the way of drafting is compared.
        if not costs or cost_of(costs, way, int(depth)) is not None
        if costs or int(depth) == n
    ]
    now = option(drafting, n, lengths[drafting][n]["value"])
    best = max([now, *options], key=lambda o: o.worth)
    if costs and best.speed is not None and best.speed < 1:
        best = Option("none", 0, 1.0, 1.0)
    depth = best.n or n
    way = best.drafting if best.n else drafting
    ceiling = 1.0 + depth
    if way == GREEDY:  # a greedy draft cannot be right more often than the body is sure
        ceiling = lengths["greedy, best possible"][depth]["value"]
        if cell["temperature"] == 0:
            ceiling = 1.0 + depth
    here = lengths[way][depth]["value"]
    trained = option(way, depth, here + closes * max(0.0, ceiling - here))
    return _verdict(cell, now, best, trained, drafting, closes)


def _is_shown(cell: dict[str, Any], now: Option, best: Option, drafting: str) -> bool:
    """Whether the prompts show that other flags are better, and not only their mean."""
    if not best.n:  # no speculation: the upper end of what is served now stays below it
        high = cell["tokens_a_step"][now.drafting][now.n]["high"]
        return high is None or now.worth * high / now.length < 1
    difference = cell["probabilistic_minus_greedy"].get(best.n)
    if difference is None or best.drafting == drafting:
        return True
    return bool(difference["low"] > 0 if best.drafting == PROBABILISTIC else difference["high"] < 0)


def _verdict(
    cell: dict[str, Any], now: Option, best: Option, trained: Option, drafting: str, closes: float
) -> Verdict:
    temperature, workload = cell["temperature"], cell["workload"]
    flags = best.worth / now.worth
    training = trained.worth / best.worth
    unit = "tokens a step" if now.speed is None else "times the speed without speculation"
    said = f"at T = {temperature:g} on {workload} prompts"

    def named(o: Option) -> str:
        return "no speculation" if not o.n else f"{o.drafting} drafts, n = {o.n}"

    gain = (
        f"training that closed {closes:.0%} of the way to a perfect drafter would bring "
        f"{trained.worth:.2f} ({training:.2f} times)"
    )
    other = (best.drafting, best.n) != (now.drafting, now.n)
    if flags >= WORTH_A_FLAG and other and _is_shown(cell, now, best, drafting):
        then = "then train" if training >= WORTH_TRAINING else "training adds little to that"
        return Verdict(
            temperature, workload, FLAGS,
            f"{said}: {named(best)} is expected to reach {best.worth:.2f} {unit}, "
            f"{named(now)} {now.worth:.2f} ({flags:.2f} times); {gain}: {then}.",
            now, best, trained,
        )  # fmt: skip
    if training >= WORTH_TRAINING:
        return Verdict(
            temperature, workload, TRAIN,
            f"{said}: {named(best)} is expected to reach {best.worth:.2f} {unit}; {gain}.",
            now, best, trained,
        )  # fmt: skip
    return Verdict(
        temperature, workload, LEAVE,
        f"{said}: {named(best)} is expected to reach {best.worth:.2f} {unit}; {gain}, less than "
        f"{WORTH_TRAINING:.2f} times: not worth hours.",
        now, best, trained,
    )  # fmt: skip
