"""What a step costs with each way of drafting: CPU seconds of the server, whatever else runs.

    python -m benchmarks.drafting_cost --body BODY --drafter FOLDER --prompts 16 --out cost.json

One server a way and one thread each (a second one would spin while it waits), asked the same
prompts in rounds that take turns, at one request at a time. A server's CPU seconds come from /proc,
over the verify steps that it counted; memory is what its processes hold together at the end. Ratios
to greedy drafts with the standard method are paired by round. For servers on a CPU: on a GPU, time
steps with `benchmarks.acceptance`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks import stats
from benchmarks.client import BenchError, Client
from benchmarks.drafter_variants import heldout
from benchmarks.drafting_arms import WAYS
from benchmarks.predict.evaluate import GREEDY
from benchmarks.schedule import seed_of
from recipes.vllm import processes
from recipes.vllm_server import Server, ServerError, ServerSpec

_TICKS = os.sysconf("SC_CLK_TCK")  # a second


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes so far, in seconds."""
    total = 0.0
    for pid in pids:
        # The name, in brackets, may hold blanks; utime and stime are fields 14 and 15.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / _TICKS
    return total


def summarise(rounds: dict[str, list[tuple[float, float, float]]]) -> list[dict[str, Any]]:
    """Args:
    rounds: way -> (CPU seconds, verify steps, tokens) of each round, in the same order.
    """
    found = []
    base = rounds[GREEDY]
    for way, mine in rounds.items():
        seconds, steps, tokens = (list(column) for column in zip(*mine, strict=True))
        row: dict[str, Any] = {
            "way": way, "rounds": len(mine), "steps": sum(steps),
            "cpu_ms_a_step": 1000 * sum(seconds) / sum(steps),
            "cpu_ms_a_token": 1000 * sum(seconds) / sum(tokens),
        }  # fmt: skip
        if way != GREEDY:
            others, their_steps, their_tokens = (list(c) for c in zip(*base, strict=True))
            # Seconds a step are the inverse of a rate: the sides change places.
            row["step_ratio"] = stats.rate_ratio(their_steps, others, steps, seconds).to_json()
            row["token_ratio"] = stats.rate_ratio(their_tokens, others, tokens, seconds).to_json()
        found.append(row)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 done, 1 a server failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--body", required=True)
    parser.add_argument("--drafter", required=True)
    parser.add_argument("--prompts", type=int, default=16, metavar="K", help="of each kind")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    from recipes.environment import describe

    prompts = heldout(options.prompts)
    config = {"method": "eagle3", "model": options.drafter, "num_speculative_tokens": options.n}
    rounds: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    held: dict[str, int] = {}
    try:
        with ExitStack() as stack:
            servers = {}
            for number, (way, extra) in enumerate(WAYS.items()):
                spec = ServerSpec(
                    f"cost-{number}", options.body, dtype="float32", max_model_len=256,
                    cpu_threads=1, speculative_config={**config, **extra},
                )  # fmt: skip
                server = Server(spec, options.out.parent / f"cost-{number}.log")
                servers[way] = stack.enter_context(server)
                server.start()
            ends = {way: server.wait_ready(300.0) for way, server in servers.items()}
            for k in range(options.rounds + 1):
                for way, server in servers.items():
                    before, counted = cpu_seconds(server.pids()), server.counters()
                    with Client(ends[way].base_url, ends[way].model) as client:
                        for p in prompts:
                            client.ask(
                                p.messages, f"prompt {p.id}", temperature=options.temperature,
                                max_tokens=96, seed=seed_of(p.id, k),
                            )  # fmt: skip
                    spent = server.counters() - counted
                    took = cpu_seconds(server.pids()) - before
                    if k:  # the first one warms up
                        rounds[way].append((took, spent.drafts, spent.generation_tokens))
                print(f"round {k} of {options.rounds}", flush=True)
            held = {way: processes.memory(server.pids()) for way, server in servers.items()}
    except (BenchError, ServerError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    argv = sys.argv[1:] if arguments is None else list(arguments)
    report = {
        "made_with": describe(),
        "command": shlex.join(["python", "-m", "benchmarks.drafting_cost", *argv]),
        "temperature": options.temperature, "n": options.n, "prompts": len(prompts),
        "ways": [{**row, "memory_bytes": held[row["way"]]} for row in summarise(rounds)],
    }  # fmt: skip
    options.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for row in report["ways"]:
        ratio = row.get("step_ratio")
        told = (
            f", {ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
        )
        print(f"{row['way']}: {row['cpu_ms_a_step']:.2f} ms of CPU a step{told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
