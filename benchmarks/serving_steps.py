"""What a step of vLLM costs with Gemma 4 26B-A4B's shape: verifying, drafting, and the break-even.

    python -m benchmarks.serving_steps                    # a GPU with 40 GB free, real size
    python -m benchmarks.serving_steps --divide 11 --layers 8 --no-fp8 --engine 0 --engine 2 \\
        --engine 2:probabilistic --acceptance 0 --context 64   # a CPU

One engine per n, kind of drafting and type of KV cache, in a process of its own (vLLM in that
process, so that its drafter can be timed), random FP8 weights made on the device, a random EAGLE-3
drafter. Greedy drafts are accepted by vLLM's synthetic rule at conditional `--acceptance`;
probabilistic ones by standard rejection sampling, which with random weights accepts next to none,
since vLLM's V1 runner drafts greedily, without a word, under any other rule. At each concurrency so
many requests with prompts of `--context` random tokens generate together; steps are timed once all
are past their prompt. A step is everything between two results of the engine (median of blocks of
ten: a kernel compiled on the way is no step's cost) and timed again where fewer requests took
longer than more; drafting is the time of the drafter's work on the device (events around it);
verifying is the rest. `busy_s` is the device's own work in a step, drafting included, from a
profile of ten more steps: where it is far below the step, the host is behind, and another host
gives another step.

$BENCH_TURN names a lock file that other work on the device holds (flock -s) while it must not be
measured beside. `--at-once K` lets K engines start side by side; only one is measured at a time.
The result file is written anew after each engine; where one failed its error stands there. Engines
that it has already, of the same settings on the same device, are not run again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.random_body import (
    LAYERS,
    VOCABULARY,
    spread_weights,
    write_body,
    write_drafter,
)
from benchmarks.serving_costs import Engine, costs, disturbed, speculation
from benchmarks.serving_timing import Drafting, device_work, time_steps
from benchmarks.train_step import turn
from recipes.vllm import processes

RESULTS = Path(__file__).parent / "results"
ATTEMPTS = 3
NEEDED_BYTES = 36 * 2**30  # of the device, for the start of one engine at real size
ENGINES = (
    *("0", "1", "2", "3", "4", "5", "6", "2:probabilistic", "4:probabilistic", "6:probabilistic"),
    *("0::auto", "4::auto", "4:probabilistic:auto"),
)


def start(order: dict[str, Any], engine: Engine) -> Any:
    """The engine of this order, in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from vllm import LLM

    from speculators_patches import apply

    apply(only=["vllm_cpu_sampling"])
    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {}
    if on_gpu:
        # The cache has its own size; the share is only what must be free at the start, and other
        # engines may be there already.
        options = {
            "kv_cache_memory_bytes": int(order["kv_gb"] * 1e9),
            "gpu_memory_utilization": round(
                min(0.9, NEEDED_BYTES / torch.cuda.mem_get_info()[1]), 3
            ),
        }
        if order["attention"]:
            options["attention_backend"] = order["attention"]
    else:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        options = {"enforce_eager": True, "gpu_memory_utilization": 0.1}
    llm = LLM(
        model=order["body"], skip_tokenizer_init=True, load_format="dummy", seed=0,
        kv_cache_dtype=engine.kv if on_gpu else "auto", max_model_len=order["context"] + 1024,
        max_num_seqs=max(order["concurrency"]), max_num_batched_tokens=4096,
        enable_prefix_caching=False, disable_log_stats=False,
        speculative_config=speculation(engine, Path(order["drafter"]), order["acceptance"]),
        **options,
    )  # fmt: skip
    if on_gpu:
        llm.apply_model(spread_weights)
    return llm


def measure(order: dict[str, Any]) -> dict[str, Any]:
    """Starts the engine, times it at each concurrency; the record."""
    engine, lock = Engine(**order["engine"]), Path(order["lock"])
    with turn(lock, alone=False):  # with all imports: they would disturb a measurement as well
        began = time.perf_counter()
        llm = start(order, engine)
        started_s = time.perf_counter() - began
    import torch

    worker = llm.llm_engine.model_executor.driver_worker
    runner = getattr(worker, "worker", worker).model_runner
    drafting = Drafting(runner) if engine.n else None
    rows: list[dict[str, Any]] = []
    with turn(lock, alone=True):
        left = order["concurrency"]
        for _ in range(ATTEMPTS):
            for concurrency in left:
                row = time_steps(llm, drafting, engine, concurrency, order)
                print(json.dumps({"engine": engine.name, **row}), file=sys.stderr, flush=True)
                rows = sorted(
                    [row, *(one for one in rows if one["concurrency"] != concurrency)],
                    key=lambda one: one["concurrency"],
                )
            found = disturbed([{"engine": order["engine"], "rows": rows}])
            left = sorted(requests for _, requests in found)
        if torch.cuda.is_available():  # after all that is timed: a profiler leaves traces
            try:
                for row in rows:
                    row |= device_work(llm, engine, row["concurrency"], order)
            except Exception as error:  # noqa: BLE001 - what was timed is not lost for it
                row["profile_error"] = f"{type(error).__name__}: {error}"
        used = torch.cuda.mem_get_info() if torch.cuda.is_available() else None
    return {
        "engine": asdict(engine),
        "name": engine.name,
        "started_s": round(started_s, 1),
        "runner": f"{type(runner).__module__}.{type(runner).__name__}",
        "drafter": drafting.whose if drafting else None,
        "device_bytes_used": used and used[1] - used[0],
        "rows": rows,
    }


def done_before(path: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The engines of an earlier, interrupted run; SystemExit if it was another measurement."""
    earlier = json.loads(path.read_text())
    for what in ("device", "settings"):
        if earlier.get(what) != record[what]:
            raise SystemExit(
                f"{path}: its {what} is {earlier.get(what)}, this run's {record[what]}. "
                "Give another --out, or move it away."
            )
    return [found for found in earlier["engines"] if "error" not in found]


def main(
    engine: Annotated[
        list[str] | None, typer.Option(help=f"n:drafting:kv [{' '.join(ENGINES)}]")
    ] = None,
    concurrency: Annotated[list[int] | None, typer.Option(help="[1 2 4 8 16]")] = None,
    acceptance: Annotated[float, typer.Option(help="Conditional; 0: rejection sampling.")] = 0.7,
    temperature: Annotated[float, typer.Option(help="Of the requests.")] = 1.0,
    context: Annotated[int, typer.Option(help="Prompt tokens.")] = 1024,
    kv_gb: Annotated[float, typer.Option(help="Device memory of the KV cache, GB.")] = 4.0,
    attention: Annotated[
        str, typer.Option(help="vLLM's attention backend; empty: its own choice.")
    ] = "TRITON_ATTN",
    divide: Annotated[int, typer.Option(help="Divide all widths by this (1: real size).")] = 1,
    layers: Annotated[int, typer.Option(help="Layers of the body.")] = LAYERS,
    fp8: Annotated[bool, typer.Option(help="FP8 weights.")] = True,
    at_once: Annotated[int, typer.Option(min=1, help="Engines that start side by side.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Cost of verifying and drafting on this machine, by n and concurrency."""
    if child is not None:
        print(json.dumps(measure(json.loads(child))), flush=True)
        return
    import torch

    from recipes.environment import describe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    engines = [Engine.parse(text) for text in engine or ENGINES]
    path = out or RESULTS / f"serving_steps_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "environment": describe(),
        "settings": {
            "acceptance": acceptance, "temperature": temperature, "context": context,
            "attention": attention, "divide": divide, "layers": layers, "fp8_weights": fp8,
        },
        "engines": [],
    }  # fmt: skip
    if path.exists():
        record["engines"] = done_before(path, record)
        had = [found["engine"] for found in record["engines"]]
        engines = [one for one in engines if asdict(one) not in had]
    logs = path.with_suffix(".log")

    def keep(found: dict[str, Any]) -> None:
        record["engines"].append(found)
        record["costs"] = costs(record["engines"], acceptance)
        record["device_costs"] = costs(record["engines"], acceptance, device=True)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps({"done": found["name"], "error": found.get("error")}), flush=True)

    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(at_once) as pool:
        order = {
            "body": str(write_body(Path(work) / "body", divide=divide, layers=layers, fp8=fp8)),
            "drafter": str(write_drafter(Path(work) / "drafter", divide=divide, layers=layers)),
            "lock": os.environ.get("BENCH_TURN", str(Path(work) / "turn")),
            "acceptance": acceptance, "context": context,
            "temperature": temperature, "kv_gb": kv_gb, "attention": attention,
            "concurrency": concurrency or [1, 2, 4, 8, 16], "vocabulary": VOCABULARY // divide,
        }  # fmt: skip

        # What stops the first ones stops them all, and each start is dear. Not so where an
        # earlier run has engines that were well.
        first = [] if record["engines"] else engines[:at_once]
        failed: list[Engine] = []

        def run(engine: Engine) -> dict[str, Any] | None:
            if first and all(one in failed for one in first):
                return None
            found = measured(engine)
            if "error" in found:
                failed.append(engine)
            return found

        def measured(engine: Engine) -> dict[str, Any]:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.serving_steps", "--child",
                 json.dumps(order | {"engine": asdict(engine)})],
                capture_output=True, text=True, check=False,
                env=os.environ | {"TYPER_STANDARD_TRACEBACK": "1"},
            )  # fmt: skip
            with logs.open("a") as log:
                log.write(
                    f"===== {engine.name}\n{done.stdout[-40_000:]}\n{done.stderr[-40_000:]}\n"
                )
            if done.returncode:
                said = [line for line in done.stderr.strip().splitlines() if line.strip()]
                return {"engine": asdict(engine), "name": engine.name, "error": said[-25:]}
            found = dict(json.loads(done.stdout.strip().splitlines()[-1]))
            text = done.stdout + done.stderr
            found["vllm_says"] = sorted(
                {
                    line.split("] ", 1)[-1][:200]
                    for line in text.splitlines()
                    if "backend" in line.lower() and "Using" in line
                }
            )[:20]
            return found

        started = [pool.submit(run, engine) for engine in engines]
        try:
            for done in as_completed(started):
                if (found := done.result()) is not None:
                    keep(found)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.send(signal.SIGKILL, processes.tree(os.getpid())[1:])
            raise
    print(f"written: {path}")
    if bad := [found for found in record["engines"] if "error" in found]:
        print("\n".join(bad[-1]["error"]), file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
