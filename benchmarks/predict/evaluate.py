"""One answer and one drafter: expected counts under every way of drafting, and the measures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.predict import walk
from benchmarks.predict.answers import Answer
from benchmarks.predict.distributions import Measures, Sampling, compare, drafted, served
from benchmarks.predict.drafting import Body, Drafter
from benchmarks.predict.walk import Counts

if TYPE_CHECKING:
    import torch

# Positions whose full-vocabulary distributions are held at once: 262,144 float32 each.
CHUNK = 256
GREEDY, PROBABILISTIC = "greedy", "probabilistic"
# Drafts drawn from q and verified as a block. Greedy ones are accepted as by the standard method:
# a drafted prefix stands at most as often as the body says it, which both reach.
BLOCK = "probabilistic, block"
# What is walked besides: the same with the body's own states at every depth (teacher-forced), and
# the best that any drafter could do with greedy drafts.
FORCED = {GREEDY: "greedy, teacher-forced", PROBABILISTIC: "probabilistic, teacher-forced"}
CEILING = "greedy, best possible"
MEANS = ("kl", "overlap", "greedy", "unsayable", "best")


@dataclass(frozen=True)
class Row:
    """What is expected of one answer.

    Attributes:
        counts: way of drafting -> verify steps and accepted drafts by position, for n = 1, 2, ...
        sums: measure -> its sum over starts, by position, rolled out.
        starts: how many starts `sums` runs over.
        unsayable_kl: positions (by depth) left out of the sum of "kl", since q cannot say a part
            of p there.
        block: sum over starts of acceptance by position with block verification, and standard.
        top: for each token of the answer the body's largest raw logit.
        capped: total variation between softmax of raw and of capped logits at temperature 1.
    """

    prompt_id: str
    workload: str
    temperature: float
    repeat: int
    tokens: int
    starts: int
    counts: dict[str, tuple[Counts, ...]]
    sums: dict[str, tuple[float, ...]]
    unsayable_kl: tuple[int, ...]
    block: tuple[float, ...]
    standard: tuple[float, ...]
    top: tuple[float, ...] = field(repr=False)
    capped: tuple[float, ...] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        del row["top"], row["capped"]
        return row


def evaluate(
    answer: Answer, states: torch.Tensor, drafter: Drafter, body: Body, how: Sampling, depth: int
) -> Row:
    """Expected counts of one answer, for n = `depth`.

    Args:
        states: [tokens, layers, hidden size], the drafter's layers and then the body's last one.
        how: what the answer was drawn with.
    """
    import torch

    device = body.head.device
    ids = torch.tensor(answer.ids, device=device)
    states = states.to(device)
    logits = drafter.logits(ids, states[:, :-1].flatten(1), depth)
    first, starts = answer.start, answer.end - answer.start - 1
    # Depth k of the start s (an index into ids) is the draft for token s + 1 + k; the body's
    # distribution of that token is at position s + k. A window may reach behind the collected text.
    targets = min(starts + depth - 1, len(ids) - 1 - first)
    found: list[list[Measures]] = [[] for _ in range(depth)]
    top: list[float] = []
    capped: list[float] = []
    for begin in range(0, targets, CHUNK):
        here = range(begin, min(begin + CHUNK, targets))
        at = torch.arange(first + here.start, first + here.stop, device=device)
        raw, final = body.logits(states[at, -1])
        p = served(final, how)
        if begin < starts:
            mine = min(len(here), starts - begin)
            top += raw[:mine].max(-1).values.tolist()
            gap = (raw[:mine].softmax(-1) - final[:mine].softmax(-1)).abs().sum(-1) / 2
            capped += gap.tolist()
        for k in range(depth):
            # Row i of logits[k] is the start i + 1: the target position j belongs to row j - 1 - k.
            rows = at - 1 - k
            valid = rows >= first - 1
            q = drafted(logits[k][rows[valid]], how.temperature)
            found[k].append(compare(p[valid], q, ids[at[valid] + 1], drafter.sayable))
    joined = [
        {name: torch.cat([getattr(m, name) for m in part]).double().cpu().numpy()
         for name in Measures.__dataclass_fields__}
        for part in found
    ]  # fmt: skip
    return _row(answer, joined, starts, depth, tuple(top), tuple(capped))


def _row(
    answer: Answer,
    by_depth: list[dict[str, Any]],
    starts: int,
    depth: int,
    top: tuple[float, ...],
    capped: tuple[float, ...],
) -> Row:
    def table(name: str, *, forced: bool = False, missing: float = 0.0) -> Any:
        """[starts, depth]; teacher-forced: depth 0 of the start that is k further on."""
        out = np.full((starts, depth), missing)
        for k in range(depth):
            values = by_depth[0][name][k:] if forced else by_depth[k][name]
            out[: min(starts, len(values)), k] = values[:starts]
        return out

    accepts = {
        GREEDY: table("hit"),
        PROBABILISTIC: walk.standing(table("log_ratio", missing=-np.inf)),
        FORCED[GREEDY]: table("hit", forced=True),
        FORCED[PROBABILISTIC]: walk.standing(table("log_ratio", forced=True, missing=-np.inf)),
        CEILING: table("best_hit", forced=True),
    }
    counts = {
        way: tuple(walk.count(chances[:, :n]) for n in range(1, depth + 1))
        for way, chances in accepts.items()
    }
    ratios = table("log_ratio", missing=-np.inf)
    blocks = walk.block_standing(ratios)
    counts[BLOCK] = tuple(walk.count_reaching(blocks[:, :n]) for n in range(1, depth + 1))
    sums = {name: _sum(table(name)) for name in MEANS}
    return Row(
        answer.prompt_id,
        answer.workload,
        answer.temperature,
        answer.repeat,
        answer.end - answer.start,
        starts,
        counts,
        sums,
        tuple(int(np.isinf(table("kl")[:, k]).sum()) for k in range(depth)),
        _sum(blocks),
        _sum(np.cumprod(walk.standing(ratios), axis=1)),
        top,
        capped,
    )


def _sum(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in np.where(np.isinf(values), 0.0, values).sum(axis=0))
