"""How many tokens a second producers and trainers get through together, and what holds them back.

A pipeline: producers compute hidden states, a network and a folder carry them, trainers consume
them. Rows are fetched ahead, so the slowest stage alone sets the pace; on a GPU that producer and
trainer share, their times add up, and it produces only what the others leave, as a row goes to a
producer that is free. No more producers work than there are requests in flight. A step of several
trainers is that of one, and besides the exchange of the gradients: a ring moves 2 (K - 1) / K of
their bytes over each link. How much of the exchange hides behind the backward pass is not modelled:
a step is never slower than said. Between machines gradients and hidden states share the links; a
file in a shared folder crosses them wherever it was made.

Fitted and checked by `python -m benchmarks.scale_trainers` (1 and 2 trainers over gloo) and
`python -m benchmarks.transfer` (1 and 2 producers that feed them); their result files hold the
errors, which `plan` repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from recipes.spread.placement import Placement


@dataclass(frozen=True)
class Rates:
    """What the parts can do.

    Attributes:
        step_fixed_s: seconds of a trainer's step that do not depend on its tokens.
        step_token_s: seconds for each token of it.
        gradient_bytes: of all trained weights.
        exchange_bytes_s: gradients between trainers of one machine, bytes/s over one link.
        network_bytes_s: one machine's link to the others, bytes/s in each direction.
        disk_bytes_s: the folder through which files pass; each byte is written and read.
            None: nothing passes through a folder.
        token_bytes: hidden states of one token.
        producer_tokens_s: tokens/s of one producer; None: not known, taken as unlimited.
        requests: rows that one trainer asks for at a time; None: as many as there are producers.
    """

    step_fixed_s: float
    step_token_s: float
    gradient_bytes: float
    exchange_bytes_s: float
    network_bytes_s: float
    token_bytes: float
    disk_bytes_s: float | None = None
    producer_tokens_s: float | None = None
    requests: int | None = None

    def step_s(self, tokens: int, trainers: int = 1, machines: int = 1) -> float:
        """Seconds of one step of `tokens` a trainer."""
        alone = self.step_fixed_s + self.step_token_s * tokens
        link = self.exchange_bytes_s if machines == 1 else self.network_bytes_s
        return alone + self.exchanged(trainers) / link

    def exchanged(self, trainers: int) -> float:
        """Bytes of gradients that cross each link in a step, in each direction."""
        return 2 * (trainers - 1) / trainers * self.gradient_bytes


@dataclass(frozen=True)
class Bound:
    """One stage's limit in tokens/s over the whole run."""

    what: str
    tokens_s: float


def bounds(rates: Rates, placement: Placement, tokens: int) -> list[Bound]:
    """Every stage's limit, the lowest first; the first is the pace of the run."""
    trainers = sum(host.trainers for host in placement.hosts)
    producers = sum(len(host.producers) for host in placement.hosts)
    trained_on = placement.trainer_hosts
    step = rates.step_s(tokens, trainers, len(trained_on))
    consumed = trainers * tokens / step
    found = [Bound("trainers", consumed)]
    if rates.producer_tokens_s is not None:
        if rates.requests is not None and not placement.offline:
            producers = min(producers, trainers * rates.requests)
        produced = producers * rates.producer_tokens_s
        shared = min(producers, sum(len(host.shared) for host in placement.hosts))
        if shared and not placement.offline:
            # Such a GPU trains T / trainers tokens/s and produces its part of what is missing:
            # (T / trainers) / c + ((T - free) / shared) / p = 1, where c is a trainer's rate.
            free = produced - shared * rates.producer_tokens_s
            helped = shared * rates.producer_tokens_s
            pace = (1 + free / helped) / (1 / consumed + 1 / helped)
            if pace < consumed:
                found[0] = Bound("a GPU that trainer and producer share", pace)
        found.append(Bound("producers", produced))
    if placement.is_spread and crossing(rates, placement) and not placement.offline:
        found.append(Bound("network", _network(rates, placement, tokens)))
    if rates.disk_bytes_s is not None:
        found.append(Bound("disk", rates.disk_bytes_s / (2 * rates.token_bytes)))
    return sorted(found, key=lambda one: one.tokens_s)


def crossing(rates: Rates, placement: Placement) -> float:
    """Share of the hidden states that crosses a link between machines."""
    return 1.0 if rates.disk_bytes_s is not None else placement.crossing


def _network(rates: Rates, placement: Placement, tokens: int) -> float:
    """Tokens/s at which the busiest machine's link is full, in one direction."""
    trainers = sum(host.trainers for host in placement.hosts)
    producers = sum(len(host.producers) for host in placement.hosts)
    # A ring of gradients enters and leaves each machine that trains once.
    ring = rates.exchanged(trainers) if len(placement.trainer_hosts) > 1 else 0.0
    busiest = 0.0  # bytes over one link for each token of the run
    for host in placement.hosts:
        consumes, produces = host.trainers / trainers, len(host.producers) / producers
        into, out = consumes, produces  # to and from a shared folder
        if rates.disk_bytes_s is None:
            into, out = into * (1 - produces), out * (1 - consumes)
        gradients = ring / (trainers * tokens) if host.trainers else 0.0
        busiest = max(busiest, gradients + max(into, out) * rates.token_bytes)
    return rates.network_bytes_s / busiest


def fit(rows: Sequence[tuple[int, int, float]], gradient_bytes: float, start: Rates) -> Rates:
    """Rates from measured steps of one machine.

    Args:
        rows: (trainers, tokens a trainer, seconds a step); at least two lengths with one trainer,
            and one row with more.
        gradient_bytes: as in `Rates`.
        start: gives what steps do not tell.
    """
    alone = [(tokens, seconds) for trainers, tokens, seconds in rows if trainers == 1]
    mean_n = sum(n for n, _ in alone) / len(alone)
    mean_s = sum(s for _, s in alone) / len(alone)
    slope = sum((n - mean_n) * (s - mean_s) for n, s in alone) / sum(
        (n - mean_n) ** 2 for n, _ in alone
    )
    fixed = max(0.0, mean_s - slope * mean_n)
    known = replace(start, step_fixed_s=fixed, step_token_s=slope, gradient_bytes=gradient_bytes)
    several = [(k, n, seconds) for k, n, seconds in rows if k > 1]
    moved = sum(known.exchanged(k) for k, _, _ in several)
    extra = sum(seconds - known.step_s(n) for _, n, seconds in several)
    # Cores that are shared can hide the exchange altogether.
    return replace(known, exchange_bytes_s=moved / max(extra, 1e-9))


def of_parts(
    tokens: int, alone_s: float, two_s: float, gradient_bytes: float, producer_tokens_s: float
) -> Rates:
    """Rates for one length, from the parts of a pipeline measured by themselves on one machine.

    Args:
        tokens: of a trainer's step.
        alone_s: seconds of it with one trainer.
        two_s: with two.
        gradient_bytes: as in `Rates`.
        producer_tokens_s: of one producer whose samples are read and not trained on.
    """
    return Rates(
        step_fixed_s=0.0,
        step_token_s=alone_s / tokens,
        gradient_bytes=gradient_bytes,
        exchange_bytes_s=gradient_bytes / max(two_s - alone_s, 1e-9),
        # Nothing crosses a link between machines here, and files stay in memory.
        network_bytes_s=float("inf"),
        token_bytes=0.0,
        producer_tokens_s=producer_tokens_s,
    )
