"""Raw rows by cell (arm, n, workload, temperature, concurrency) and by prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.schema import RequestRow


@dataclass(frozen=True)
class CellKey:
    """What makes rows comparable; `place` is what an arm shares with its base."""

    arm: str
    n: int
    workload: str
    temperature: float
    concurrency: int

    @classmethod
    def of(cls, r: RequestRow) -> CellKey:
        return cls(r.arm, r.n, r.workload, r.temperature, r.concurrency)

    @property
    def place(self) -> tuple[str, float, int]:
        return self.workload, self.temperature, self.concurrency

    @property
    def label(self) -> str:
        return f"{self.arm}, n = {self.n}" if self.n else self.arm


@dataclass(frozen=True)
class ByPrompt:
    """Sums over the repeats of each prompt, in the order of the ids."""

    ids: list[str]
    tokens: list[int]
    seconds: list[float]
    drafts: list[int]
    accepted: list[list[int]]

    @classmethod
    def of(cls, rows: Sequence[RequestRow], ids: Iterable[str] | None = None) -> ByPrompt:
        groups: dict[str, list[RequestRow]] = defaultdict(list)
        for r in rows:
            groups[r.prompt_id].append(r)
        chosen = sorted(groups if ids is None else ids)
        positions = max((len(r.accepted) for r in rows), default=0)
        return cls(
            ids=chosen,
            tokens=[sum(r.completion_tokens for r in groups[i]) for i in chosen],
            seconds=[sum(r.seconds for r in groups[i]) for i in chosen],
            drafts=[sum(r.drafts for r in groups[i]) for i in chosen],
            accepted=[
                [sum(r.accepted[k] for r in groups[i] if k < len(r.accepted))
                 for k in range(positions)]
                for i in chosen
            ],
        )  # fmt: skip


def accepted_by_position(rows: Sequence[RequestRow]) -> list[int]:
    """Drafts accepted up to each position, over all rows."""
    positions = max((len(r.accepted) for r in rows), default=0)
    return [sum(r.accepted[k] if k < len(r.accepted) else 0 for r in rows)
            for k in range(positions)]  # fmt: skip


def tokens_per_second(rows: Sequence[RequestRow], bad: Collection[str] = ()) -> float | None:
    """Aggregate tok/s without the answers to the prompts in `bad`; None if nothing is left.

    One at a time: tokens over the requests' seconds. Several at once: tokens over the time from
    each block's first start to its last end, in which the bad ones took part.
    """
    kept = [r for r in rows if r.prompt_id not in bad]
    blocks: dict[int, list[RequestRow]] = defaultdict(list)
    for r in rows:
        blocks[r.block].append(r)
    if all(r.concurrency == 1 for r in rows):
        seconds = sum(r.seconds for r in kept)
    else:
        seconds = sum(
            max(r.started_s + r.seconds for r in b) - min(r.started_s for r in b)
            for b in blocks.values()
        )
    tokens = sum(r.completion_tokens for r in kept)
    return tokens / seconds if tokens and seconds > 0 else None


def other_prompts(rows: Sequence[RequestRow], base_rows: Sequence[RequestRow]) -> list[str]:
    """Ids whose prompt has another number of tokens in two arms: not the same prompt.

    Another chat template, system prompt or tokenizer shows in that number.
    """
    counts = {r.prompt_id: r.prompt_tokens for r in base_rows}
    return sorted({r.prompt_id for r in rows
                   if counts.get(r.prompt_id, r.prompt_tokens) != r.prompt_tokens})  # fmt: skip
