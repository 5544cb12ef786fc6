"""One arm on one workload at one temperature, in the form that the miniature's table reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.schema import RequestRow


@dataclass(frozen=True)
class Answer:
    """One answered prompt; `seconds` from sending the request to its last byte."""

    prompt_id: str
    text: str
    tokens: int
    seconds: float
    finish_reason: str


@dataclass(frozen=True)
class Measurement:
    """Sums over the answers of one arm to one kind of prompt.

    `acceptance[k]` is unconditional: drafts accepted up to position k, of all drafts. It cannot
    rise with k. `tokens_per_step` counts the token the body adds itself. Seconds are those of
    requests sent one at a time, so tok/s includes prompt processing and HTTP.
    """

    arm: str
    n: int
    kind: str
    temperature: float
    prompts: int
    tokens: int
    seconds: float
    tokens_per_s: float
    drafts: int
    accepted: tuple[int, ...]
    acceptance: tuple[float, ...]
    tokens_per_step: float | None
    hit_token_limit: int
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Measurement:
        return cls(
            **{
                **row,
                "accepted": tuple(row["accepted"]),
                "acceptance": tuple(row["acceptance"]),
                "answers": tuple(Answer(**a) for a in row["answers"]),
            }
        )


def measurements(rows: Sequence[RequestRow]) -> list[Measurement]:
    """One for each arm, n, workload and temperature among requests sent one at a time."""
    groups: dict[tuple[str, int, str, float], list[RequestRow]] = {}
    for r in rows:
        if r.concurrency == 1:
            groups.setdefault((r.arm, r.n, r.workload, r.temperature), []).append(r)
    return [_measurement(*key, found) for key, found in groups.items()]


def _measurement(
    arm: str, n: int, kind: str, temperature: float, rows: list[RequestRow]
) -> Measurement:
    drafts = sum(r.drafts for r in rows)
    accepted = tuple(sum(r.accepted[k] for r in rows if k < len(r.accepted)) for k in range(n))
    tokens, seconds = sum(r.completion_tokens for r in rows), sum(r.seconds for r in rows)
    return Measurement(
        arm=arm, n=n, kind=kind, temperature=temperature, prompts=len(rows), tokens=tokens,
        seconds=seconds, tokens_per_s=tokens / seconds, drafts=drafts, accepted=accepted,
        acceptance=tuple(a / drafts for a in accepted) if drafts else (),
        tokens_per_step=1 + sum(accepted) / drafts if drafts else None,
        hit_token_limit=sum(r.finish_reason == "length" for r in rows),
        answers=tuple(
            Answer(r.prompt_id, r.text, r.completion_tokens, r.seconds, r.finish_reason)
            for r in rows
        ),
    )  # fmt: skip
