"""What more `ttt_steps`, and what validation now computes, cost at the real drafter's size.

    python -m benchmarks.ttt_cost [--device cuda] [--divide 16 --tokens 512] [--out FILE.json]

For ttt_steps 1 to 5: median seconds of a training step and peak memory; the same with the
verifier's softcap on the targets; a validation batch with expected acceptance. Upstream's own
model, loss and optimizer on random weights (`benchmarks.real_size`), patched as the recipe patches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.real_size import Size, Training, batch, synchronise

STEPS = (1, 2, 3, 4, 5)


def timed(device: str, times: int, run: Any) -> tuple[float, float]:
    """(median seconds, peak GiB) of `run`, after two untimed calls."""
    on_gpu = torch.device(device).type == "cuda"
    for _ in range(2):
        run()
    synchronise(device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        synchronise(device)
        found.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else float("nan")
    return statistics.median(found), peak


def measure(size: Size, device: str, ttt_steps: int, loss: str, times: int) -> dict[str, Any]:
    """One row: training with and without the cap, validation with expected acceptance."""
    from speculators_patches.patches.softcap_targets import set_cap

    training = Training(size, device, ttt_steps=ttt_steps, loss=loss)
    data = batch(size, training.model, seed=1)
    row: dict[str, Any] = {"ttt_steps": ttt_steps, "loss": loss}
    for name, cap in (("uncapped", None), ("capped", 30.0)):
        set_cap(training.model.verifier_lm_head, cap)
        seconds, peak = timed(device, times, lambda: training.step(data))
        row[f"step_s_{name}"], row[f"peak_gib_{name}"] = seconds, peak
    metrics: dict[str, Any] = {}

    def validate() -> None:
        kind = torch.device(device).type
        training.model.eval()
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu"):
            metrics.update(training.model(**data, **training._call)[2])

    row["validation_s"], row["validation_peak_gib"] = timed(device, times, validate)
    row["expect_0"] = float(metrics["expect_0_sum"] / metrics["expect_0_total"])
    assert not any(name.startswith("_") for name in metrics), sorted(metrics)
    return row


def main() -> None:
    """The command."""
    found = argparse.ArgumentParser(description=__doc__)
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--divide", type=int, default=1)
    found.add_argument("--tokens", type=int, default=4096)
    found.add_argument("--loss", default="eager")
    found.add_argument("--ttt", type=int, nargs="+", default=list(STEPS))
    found.add_argument("--times", type=int, default=10)
    found.add_argument("--out", type=Path)
    options = found.parse_args()
    from recipes.environment import describe
    from speculators_patches import apply

    apply()
    size = Size(options.divide, options.tokens)
    rows = []
    for ttt_steps in options.ttt:
        rows.append(measure(size, options.device, ttt_steps, options.loss, options.times))
        print(json.dumps(rows[-1]), flush=True)
        if torch.cuda.is_available():
            torch._dynamo.reset()
            torch.cuda.empty_cache()
    result = {"made_with": describe(), "size": vars(size), "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
