"""Times the steps of a vLLM engine that lives in this process, for `serving_steps`."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from benchmarks.serving_costs import Engine

WARM, STEPS, BLOCK = 12, 60, 10


class Drafting:
    """Times the drafter's work on the device, call by call."""

    def __init__(self, runner: Any) -> None:
        import torch

        self._torch = torch
        self._pairs: list[Any] = []
        self._on_gpu = torch.cuda.is_available()
        self.whose = next(
            (name for name in ("drafter", "speculator") if getattr(runner, name, None)), None
        )
        if self.whose is not None:
            owner = getattr(runner, self.whose)
            self._propose = owner.propose
            owner.propose = self._timed

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        if not self._on_gpu:
            began = time.perf_counter()
            result = self._propose(*args, **kwargs)
            self._pairs.append(time.perf_counter() - began)
            return result
        first, last = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        result = self._propose(*args, **kwargs)
        last.record()
        self._pairs.append((first, last))
        return result

    def take(self) -> list[float]:
        """Seconds of each call since the last time."""
        if self._on_gpu:
            self._torch.cuda.synchronize()
        found = [
            pair if isinstance(pair, float) else pair[0].elapsed_time(pair[1]) / 1e3
            for pair in self._pairs
        ]
        self._pairs.clear()
        return found


def counters(llm: Any) -> dict[str, float]:
    """vLLM's own counts, by name."""
    return {
        m.name: m.value for m in llm.get_metrics() if isinstance(getattr(m, "value", None), int)
    }


class Load:
    """So many requests that generate together, past their prompts and warm.

    Use as a context; what is left of them is aborted at its end.
    """

    def __init__(self, llm: Any, engine: Engine, concurrency: int, order: dict[str, Any]) -> None:
        from vllm import SamplingParams

        self._core = llm.llm_engine
        self.seen: dict[str, list[int]] = {}
        chance = random.Random(concurrency)
        for number in range(concurrency):
            prompt = [chance.randrange(5, order["vocabulary"]) for _ in range(order["context"])]
            self._core.add_request(
                f"{engine.n}-{concurrency}-{number}",
                {"prompt_token_ids": prompt},
                SamplingParams(
                    temperature=order["temperature"], max_tokens=1000, ignore_eos=True,
                    detokenize=False,
                ),
            )  # fmt: skip
        while len(self.seen) < concurrency:
            self.step()
        for _ in range(WARM):
            self.step()

    def step(self) -> int:
        """One call of the engine; how many requests it had a result for."""
        outputs = self._core.step()
        for one in outputs:
            self.seen[one.request_id] = list(one.outputs[0].token_ids)
        return len(outputs)

    def tokens(self) -> int:
        """Generated so far."""
        return sum(map(len, self.seen.values()))

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._core.abort_request(list(self.seen))
        while self._core.has_unfinished_requests():
            self._core.step()


def time_steps(
    llm: Any, drafting: Drafting | None, engine: Engine, concurrency: int, order: dict[str, Any]
) -> dict[str, Any]:
    """One row: seconds a step, of them drafting, and what the steps gave."""
    import torch

    with Load(llm, engine, concurrency, order) as load:
        if drafting:
            drafting.take()
        before, tokens_before = counters(llm), load.tokens()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < STEPS:
            if load.step():
                now = time.perf_counter()
                times.append(now - began)
                began = now
        after = counters(llm)
        drafted = drafting.take() if drafting else []
        generated = load.tokens() - tokens_before
        distinct = len({t for tokens in load.seen.values() for t in tokens})
        all_tokens = load.tokens()
    blocks = [statistics.mean(times[k : k + BLOCK]) for k in range(0, STEPS, BLOCK)]

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    return {
        "concurrency": concurrency,
        "step_s": round(statistics.median(blocks), 6),
        "step_mean_s": round(statistics.mean(times), 6),
        "step_least_s": round(min(blocks), 6),
        "draft_s": round(statistics.median(drafted), 6) if drafted else 0.0,
        "draft_calls": len(drafted),
        "steps": STEPS,
        "tokens": generated,
        "tokens_a_step": round(generated / STEPS / concurrency, 3),
        "accepted_a_draft": (
            round(
                grown("vllm:spec_decode_num_accepted_tokens")
                / max(1, grown("vllm:spec_decode_num_drafts")),
                3,
            )
            if engine.n
            else None
        ),
        # Few distinct tokens would mean few experts, and too cheap a pass.
        "distinct_tokens_share": round(distinct / max(1, all_tokens), 3),
    }


def device_work(
    llm: Any, engine: Engine, concurrency: int, order: dict[str, Any]
) -> dict[str, Any]:
    """Of one row the device's own work in a step: what remains on a host that is never behind."""
    from benchmarks.step_profile import device_time

    with Load(llm, engine, concurrency, order) as load:

        def run() -> None:
            done = 0
            while done < BLOCK:
                done += load.step() > 0

        found = device_time(run, BLOCK)
    if not found["launches"]:
        return {"profile_error": "the profiler saw no work on the device"}
    return {name: found[name] for name in ("busy_s", "launches", "kinds_s", "host")}
