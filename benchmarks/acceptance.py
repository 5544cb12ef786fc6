"""Per-position acceptance and tokens a second of one running server, over a list of prompts.

Requests go through `/v1/chat/completions`, so the server applies the chat template: the published
100 tok/s came from raw prompts without one, which the body answered with looping text. Acceptance
is the difference of two snapshots of vLLM's counters around the prompts, so what ran before does
not count. Requests run one at a time (the published bench's batch of 1).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from recipes.vllm_server import SpecCounters, read_counters


class BenchError(RuntimeError):
    """The bench cannot go on; the message says at which prompt and why."""


@dataclass(frozen=True)
class Prompt:
    """One conversation to answer. `kind` groups prompts that are reported apart."""

    id: str
    kind: str
    messages: tuple[dict[str, str], ...]


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
    """One arm on one kind of prompt at one temperature.

    `acceptance[k]` is unconditional: drafts accepted up to position k, of all drafts. It cannot
    rise with k. `tokens_per_step` counts the token the body adds itself. Seconds are wall time of
    sequential requests, so tok/s includes prompt processing and HTTP.
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


def load_prompts(path: Path) -> list[Prompt]:
    """Prompts from JSON lines holding `prompt` or `messages`, optionally `id` and `kind`.

    Raises:
        BenchError: names the line that holds neither, or that is not JSON.
    """
    prompts = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as e:
        raise BenchError(f"Cannot read the prompts {path}: {e.strerror}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise BenchError(f"{path}:{number} is not valid JSON.") from None
        messages = row.get("messages") if isinstance(row, dict) else None
        if messages is None and isinstance(row, dict) and isinstance(row.get("prompt"), str):
            messages = [{"role": "user", "content": row["prompt"]}]
        if not messages:
            raise BenchError(f"{path}:{number} has neither `prompt` nor `messages`.")
        prompts.append(
            Prompt(
                id=str(row.get("id", number)),
                kind=str(row.get("kind", "all")),
                messages=tuple(messages),
            )
        )
    if not prompts:
        raise BenchError(f"{path} holds no prompts.")
    return prompts


def _answer(
    client: httpx.Client, model: str, prompt: Prompt, temperature: float, max_tokens: int
) -> Answer:
    start = time.perf_counter()
    try:
        reply = client.post(
            "/v1/chat/completions",
            json={
                "model": model,
                "messages": list(prompt.messages),
                "temperature": temperature,
                "max_tokens": max_tokens,
                "seed": 0,
            },
        )
    except httpx.HTTPError as e:
        raise BenchError(f"The server did not answer prompt {prompt.id}: {e}.") from None
    seconds = time.perf_counter() - start
    if reply.status_code != 200:
        raise BenchError(
            f"The server answered prompt {prompt.id} with HTTP {reply.status_code}: "
            f"{reply.text[:300]}"
        )
    data = reply.json()
    choice = data["choices"][0]
    return Answer(
        prompt_id=prompt.id,
        text=choice["message"]["content"] or "",
        tokens=int(data["usage"]["completion_tokens"]),
        seconds=seconds,
        finish_reason=str(choice["finish_reason"]),
    )


def measure(
    base_url: str,
    model: str,
    prompts: Sequence[Prompt],
    *,
    arm: str,
    n: int,
    temperature: float,
    max_tokens: int,
    timeout_s: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Answer `prompts` one by one; one Measurement for each kind among them.

    Args:
        base_url: of the server, e.g. `http://127.0.0.1:8000`.
        n: tokens drafted a step that the server was started with; 0 = no speculation.
        timeout_s: for one answer.
        progress: called with (answered, all).

    Raises:
        BenchError: a request failed, or the server's counters contradict `n`.
    """
    kinds = list(dict.fromkeys(p.kind for p in prompts))
    done = 0
    results = []
    with httpx.Client(base_url=base_url, timeout=timeout_s) as client:
        # One untimed answer: the first request of a server pays for lazy initialisation.
        _answer(client, model, prompts[0], temperature, min(8, max_tokens))
        for kind in kinds:
            before = read_counters(base_url)
            answers = []
            for prompt in (p for p in prompts if p.kind == kind):
                answers.append(_answer(client, model, prompt, temperature, max_tokens))
                done += 1
                if progress is not None:
                    progress(done, len(prompts))
            spent = read_counters(base_url) - before
            results.append(_summarise(arm, n, kind, temperature, answers, spent))
    return results


def _summarise(
    arm: str,
    n: int,
    kind: str,
    temperature: float,
    answers: Sequence[Answer],
    spent: SpecCounters,
) -> Measurement:
    if (n > 0) != (spent.drafts > 0) or len(spent.accepted_per_pos) not in (0, n):
        raise BenchError(
            f"Arm {arm}: asked for {n} drafted tokens a step, but the server counted "
            f"{spent.drafts} drafts over {len(spent.accepted_per_pos)} positions."
        )
    tokens = sum(a.tokens for a in answers)
    seconds = sum(a.seconds for a in answers)
    return Measurement(
        arm=arm,
        n=n,
        kind=kind,
        temperature=temperature,
        prompts=len(answers),
        tokens=tokens,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        drafts=int(spent.drafts),
        accepted=tuple(int(a) for a in spent.accepted_per_pos),
        acceptance=spent.acceptance,
        tokens_per_step=spent.mean_accepted_length,
        hit_token_limit=sum(a.finish_reason == "length" for a in answers),
        answers=tuple(answers),
    )
