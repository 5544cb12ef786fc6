"""The prompts of one workload to one server at one temperature, some at once; rows come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.client import BenchError, Client, Reply
from benchmarks.prompts import WorkloadPrompt
from benchmarks.schedule import seed_of
from benchmarks.schema import ArmSpec, RequestRow
from recipes.vllm_server import read_counters


@dataclass(frozen=True)
class Cell:
    """What all requests of one measurement share.

    `by_request`: the server reports speculation counts with each answer. Where it does not, the
    differences of its counters are taken, which is possible for one request at a time only.
    `salt` keeps what others asked of the server out of its prefix cache.
    """

    arm: ArmSpec
    temperature: float
    concurrency: int
    block: int
    max_tokens: int
    seed: int
    by_request: bool
    salt: str = ""

    def sampling(self, prompt_id: str) -> dict[str, Any]:
        """The sampling fields of a prompt's request, the same in every arm."""
        return {
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed_of(prompt_id, self.seed),
            # A prompt is asked at several temperatures: none may find the other's prefix cached.
            "cache_salt": f"bench {self.salt} {self.temperature:g} {self.concurrency}",
        }


def answer(
    client: Client,
    cell: Cell,
    prompts: Sequence[WorkloadPrompt],
    progress: Callable[[int], None],
) -> list[RequestRow]:
    """One row a prompt, in their order; `progress` is told how many are answered.

    Raises:
        BenchError: a request failed, or the server drafts otherwise than the arm says.
    """
    stop = threading.Event()
    counting = threading.Lock()
    done = 0

    def one(prompt: WorkloadPrompt) -> RequestRow:
        nonlocal done
        if stop.is_set():
            raise BenchError("The bench was stopped.")
        row = _ask(client, cell, prompt)
        with counting:
            done += 1
            progress(done)
        return row

    if cell.concurrency == 1:
        return [one(p) for p in prompts]
    with ThreadPoolExecutor(cell.concurrency) as threads:
        futures = [threads.submit(one, p) for p in prompts]
        try:
            return [f.result() for f in futures]
        except BaseException:
            # Answers under way are cut off: Ctrl+C must not wait for the longest of them.
            stop.set()
            client.close()
            raise


def _ask(client: Client, cell: Cell, prompt: WorkloadPrompt) -> RequestRow:
    n = cell.arm.n
    by_counters = n > 0 and not cell.by_request and cell.concurrency == 1
    before = read_counters(client.base_url) if by_counters else None
    reply = client.ask(prompt.messages, f"prompt {prompt.id}", **cell.sampling(prompt.id))
    if before is not None:
        reply = replace(reply, spent=read_counters(client.base_url) - before)
    _check_depth(reply, n)
    return _row(reply, cell, prompt, "counters" if before is not None else "request")


def _check_depth(reply: Reply, n: int) -> None:
    positions = len(reply.spent.accepted_per_pos) if reply.spent else 0
    if reply.spent and reply.spent.drafts and positions != n:
        raise BenchError(
            f"{n} drafted tokens a step were asked for, but the server counts {positions} "
            "positions: it is not the server of this arm."
        )


def _row(reply: Reply, cell: Cell, prompt: WorkloadPrompt, counted_by: str) -> RequestRow:
    spent = reply.spent
    return RequestRow(
        prompt_id=prompt.id, workload=prompt.kind, length=prompt.length, arm=cell.arm.name,
        n=cell.arm.n, temperature=cell.temperature, concurrency=cell.concurrency, block=cell.block,
        seed=seed_of(prompt.id, cell.seed), text=reply.text, finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens,
        started_s=reply.started, seconds=reply.seconds, ttft_s=reply.ttft_s, itl_s=reply.itl_s,
        drafts=int(spent.drafts) if spent else 0,
        draft_tokens=int(spent.draft_tokens) if spent else 0,
        accepted=tuple(int(a) for a in spent.accepted_per_pos) if spent else (),
        counted_by=counted_by if spent else "none", token_ids=reply.token_ids,
    )  # fmt: skip
