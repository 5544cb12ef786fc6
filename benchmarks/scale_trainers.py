"""Steps of 1 and 2 trainers side by side, and how well `plan`'s model foretells them.

    python -m benchmarks.scale_trainers            # writes benchmarks/results/scale_trainers.json

Two gloo ranks of one thread each, upstream's drafter with the real proportions (--divide), DDP as
upstream wraps it. At each length blocks of one trainer (the other rank waits) and of two take
turns, each rank under a share of a core (benchmarks/quota.py), so that two do not get less of the
machine than one. The model (recipes/spread/model.py) is fitted on the shortest and the longest
length and foretells the tokens/s of those between; the file holds the errors. Seconds are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.quota import NoQuotas, Quotas
from recipes import environment
from recipes.spread import torchrun
from recipes.spread.model import Rates, fit

RESULT = Path(__file__).parent / "results" / "scale_trainers.json"
# What the steps of trainers do not tell.
_REST = Rates(0, 0, 0, 1, 1, 1)


def predictions(rows: list[dict[str, Any]], gradient_bytes: int) -> list[dict[str, Any]]:
    """Each row with the model's tokens/s and its error; `fitted` says which the fit has seen."""
    lengths = sorted({row["tokens"] for row in rows})
    seen = (lengths[0], lengths[-1])
    rates = fit(
        [(row["trainers"], row["tokens"], row["step_s"]) for row in rows if row["tokens"] in seen],
        gradient_bytes,
        _REST,
    )
    out = []
    for row in rows:
        measured = row["trainers"] * row["tokens"] / row["step_s"]
        told = row["trainers"] * row["tokens"] / rates.step_s(row["tokens"], row["trainers"])
        out.append(
            row
            | {
                "tokens_s": measured,
                "model_tokens_s": told,
                "error": told / measured - 1,
                "fitted": row["tokens"] in seen,
            }
        )
    return out


def _rank(options: argparse.Namespace) -> None:
    """One rank; rank 0 prints the rows as JSON."""
    import torch
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from benchmarks.real_size import Size, Training, batch

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    quotas = Quotas(options.cores)
    if options.cores:
        quotas.give("rank", [os.getpid()])
    rows = []
    for tokens in options.tokens:
        size = Size(divide=options.divide, tokens=tokens)
        alone, both = Training(size, "cpu"), Training(size, "cpu")
        data = [batch(size, alone.model, 10 * rank + i) for i in range(2)]
        both.model = DistributedDataParallel(both.model)
        times: dict[int, list[float]] = {1: [], 2: []}
        for block in range(options.blocks):
            for trainers, training in ((1, alone), (2, both)):
                dist.barrier()
                if trainers == 1 and rank == 1:
                    continue
                for step in range(options.steps):
                    began = time.perf_counter()
                    training.step(data[step % 2])
                    if block:  # the first warms up
                        times[trainers].append(time.perf_counter() - began)
        gradient = sum(p.numel() * 4 for p in alone.model.parameters() if p.requires_grad)
        rows += [
            {
                "trainers": trainers,
                "tokens": tokens,
                "step_s": statistics.median(seconds),
                "quartiles_s": statistics.quantiles(seconds, n=4)[::2],
                "steps": len(seconds),
            }
            for trainers, seconds in times.items()
            if seconds
        ]
    if rank == 0:
        print(json.dumps({"gradient_bytes": gradient, "rows": rows}))
    dist.barrier()
    dist.destroy_process_group()
    quotas.__exit__()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--divide", type=int, default=8, help="divides the real drafter's widths")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--steps", type=int, default=4, help="in one block")
    parser.add_argument("--blocks", type=int, default=6, help="the first is not counted")
    parser.add_argument(
        "--cores", type=float, default=0.8, help="of each rank; 0: as much as it gets"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if len(options.tokens) < 3:
        parser.error("--tokens needs three lengths: the model is checked on those between.")
    if "LOCAL_RANK" in os.environ:
        return _rank(options)
    began = time.monotonic()
    if options.cores:
        try:
            with Quotas(options.cores):
                pass
        except NoQuotas as error:
            raise SystemExit(f"error: {error}; --cores 0 gives ranks what they get.") from None
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", __spec__.name if __spec__ else "benchmarks.scale_trainers", *sys.argv[1:]],
        env={**os.environ, **torchrun.ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"the ranks ended with exit code {done.returncode}; see above.")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    rows = predictions(found["rows"], found["gradient_bytes"])
    unseen = [abs(row["error"]) for row in rows if not row["fitted"]]
    result = {
        "command": environment.command_line("benchmarks.scale_trainers"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_with": environment.describe(),
        "divide": options.divide,
        "cores": options.cores,
        "gradient_bytes": found["gradient_bytes"],
        "seconds": round(time.monotonic() - began, 1),
        "largest_error_on_unseen": max(unseen),
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        mark = "fitted" if row["fitted"] else "unseen"
        print(
            f"{row['trainers']} trainers, {row['tokens']} tokens: {row['tokens_s']:.0f} tokens/s, "
            f"model {row['model_tokens_s']:.0f} ({100 * row['error']:+.1f} %, {mark})"
        )
    print(f"written: {options.out}")
    return None


if __name__ == "__main__":
    main()
