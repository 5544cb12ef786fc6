"""What a training step of the real drafter costs: time, memory, where both go, and the floor.

    python -m benchmarks.train_step                          # a GPU: 12 settings, real size
    python -m benchmarks.train_step --divide 8 --ttt 3 --tokens 512 --loss eager   # a CPU

Every setting runs in a process of its own (its peak memory and its compiled code are nobody
else's) with upstream's model, loss, optimizers and step (`real_size.Training`), batches already on
the device, documents of 1024 tokens. `--at-once K` lets K processes compile side by side; only one
is ever measured, and nothing else then computes ($BENCH_TURN: see `serving_steps`). The file is
written anew after each setting.

Reported: seconds a step (median over blocks that are synchronised at their ends only), tokens/s,
phases, kernels by kind, peak memory as PyTorch's allocator counts it (allocated and reserved) and
what the process holds besides (CUDA's context), time to bring a batch from pinned memory, and the
floor (`step_floor`).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path(__file__).parent / "results"
DOCUMENT = 1024  # tokens; the published run's conversations had 934


@dataclass(frozen=True)
class Setting:
    """One measured training step.

    Args:
        ttt: positions trained.
        tokens: packed tokens.
        loss: upstream's --loss-implementation.
        softcap: cap of the verifier's logits, None: as upstream, without one.
        optimizer: adamw or muon.
        patches: of this project, applied by name.
        divide: see `real_size.Size`.
        deterministic: as upstream's --deterministic-cuda with the patch deterministic_cuda.
    """

    ttt: int
    tokens: int
    loss: str
    softcap: float | None = None
    optimizer: str = "adamw"
    patches: tuple[str, ...] = ()
    divide: int = 1
    deterministic: bool = False

    @property
    def name(self) -> str:
        cap = "" if self.softcap is None else f", cap {self.softcap:g}"
        more = "".join(f" +{patch}" for patch in self.patches)
        more += ", deterministic" if self.deterministic else ""
        return f"ttt {self.ttt}, {self.tokens} tokens, {self.loss}{cap}, {self.optimizer}{more}"


@contextmanager
def turn(lock: Path, *, alone: bool) -> Iterator[None]:
    """Beside others that are not measured, or alone."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def cap_verifier(model: Any, cap: float) -> None:
    """The verifier's head says what Gemma 4's does: cap * tanh(logits / cap)."""
    import torch

    class Capped(torch.nn.Linear):
        def forward(self, states: Any) -> Any:
            return cap * torch.tanh(super().forward(states) / cap)

    model.verifier_lm_head.__class__ = Capped


def measure(setting: Setting, lock: Path, steps: int, rates: dict[str, float]) -> dict[str, Any]:
    """The record of one setting; see the module's docstring."""
    documents = max(1, setting.tokens // DOCUMENT)
    with turn(lock, alone=False):  # with all imports: they would disturb a measurement as well
        import torch

        from benchmarks import step_floor, step_profile
        from benchmarks.real_size import Size, Training, batch, synchronise
        from speculators_patches import apply

        device = "cuda" if torch.cuda.is_available() else "cpu"
        apply(only=["cpu_training", "deterministic_cuda", "fused_loss_compiles", *setting.patches])
        if setting.deterministic:
            from speculators.train import cli

            cli.set_seed(0, deterministic=True)
        size = Size(setting.divide, setting.tokens)
        training = Training(
            size, device, optimizer=setting.optimizer, ttt_steps=setting.ttt, loss=setting.loss
        )
        if setting.softcap is not None:
            cap_verifier(training.model, setting.softcap)
        batches = [batch(size, training.model, seed, documents) for seed in range(4)]
        began = time.perf_counter()
        losses = [float(training.step(batches[number])) for number in range(4)]
        first_steps_s = time.perf_counter() - began
    with turn(lock, alone=True):
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        blocks = []
        for _ in range(6):
            synchronise(device)
            began = time.perf_counter()
            for number in range(steps):
                training.step(batches[number % 4])
            synchronise(device)
            blocks.append((time.perf_counter() - began) / steps)
        blocks.sort()
        step_s = statistics.median(blocks)
        memory = _memory(torch) if device == "cuda" else None
        phases = step_profile.phases(training, batches, max(3, steps))
        seen = step_profile.kernels(training, batches) if device == "cuda" else None
        carry_s = _carry(batches[0], device, synchronise) if device == "cuda" else None
        last = float(training.step(batches[0]))
        digest = hashlib.sha256()
        for name, tensor in sorted(training.trained().items()):
            digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    record = {
        "setting": asdict(setting),
        "name": setting.name,
        "step_s": {
            "min": round(blocks[0], 5),
            "median": round(step_s, 5),
            "max": round(blocks[-1], 5),
            "blocks": len(blocks),
            "steps_a_block": steps,
        },
        "tokens_per_s": round(setting.tokens / step_s),
        "first_steps_s": round(first_steps_s, 2),
        "phases_s": phases,
        "memory": memory,
        "from_pinned_memory_s": carry_s,
        "losses": [*losses, last],
        # Equal where two settings trained bitwise the same (same steps, same batches).
        "weights_sha256": digest.hexdigest(),
        "floor": step_floor.floor(size, setting.ttt, documents, trained, rates),
    }
    if seen is not None:
        record |= {"idle_s": round(step_s - seen["busy_s"], 5), **seen}
    return record


def _memory(torch: Any) -> dict[str, int]:
    """Bytes: peaks of the allocator, and what the device holds that the allocator does not know."""
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
        "allocated": torch.cuda.memory_allocated(),
        # Of this process only if no other is on the device (--at-once 1).
        "outside_allocator": total - free - torch.cuda.memory_reserved(),
    }


def _carry(data: dict[str, Any], device: str, synchronise: Any) -> float:
    """Median seconds for a batch from pinned memory to the device."""
    pinned = {name: value.cpu().pin_memory() for name, value in data.items()}
    seen = []
    for _ in range(5):
        synchronise(device)
        began = time.perf_counter()
        _moved = [value.to(device, non_blocking=True) for value in pinned.values()]
        synchronise(device)
        seen.append(time.perf_counter() - began)
    return round(statistics.median(seen), 5)


def child(order: str) -> None:
    """Runs one setting, or asks the device for its rates; prints the record on the last line."""
    content = json.loads(order)
    if "device" in content:
        import torch

        from benchmarks import step_floor

        name = torch.cuda.get_device_name()
        print(json.dumps({"device": name, "ceilings": step_floor.ceilings("cuda")}), flush=True)
        return
    setting = Setting(**content["setting"] | {"patches": tuple(content["setting"]["patches"])})
    record = measure(setting, Path(content["lock"]), content["steps"], content["rates"])
    print(json.dumps(record), flush=True)


def start(order: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """A process of its own for what `child` does."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.train_step", "--child", json.dumps(order)],
        capture_output=True, text=True, check=False,
        env=os.environ | {"TYPER_STANDARD_TRACEBACK": "1"},
    )  # fmt: skip


def run_one(setting: Setting, lock: Path, steps: int, rates: dict[str, float]) -> dict[str, Any]:
    """The child's record, or what ended it."""
    done = start({"setting": asdict(setting), "lock": str(lock), "steps": steps, "rates": rates})
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return {"setting": asdict(setting), "name": setting.name, "error": said[-12:]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main(
    ttt: Annotated[list[int] | None, typer.Option(help="Positions [3 4 5].")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Packed [4096 8192].")] = None,
    loss: Annotated[list[str] | None, typer.Option(help="[eager fused].")] = None,
    softcap: Annotated[
        list[float] | None, typer.Option(help="Also the first setting of each loss with this cap.")
    ] = None,
    patches: Annotated[
        list[str] | None,
        typer.Option("--patch", help="Also each setting with these patches (a+b)."),
    ] = None,
    deterministic: Annotated[
        bool, typer.Option(help="Also each eager setting with deterministic kernels.")
    ] = False,
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw",
    divide: Annotated[int, typer.Option(help="Divide all widths by this (1: real size).")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Steps in each of 6 blocks.")] = 10,
    at_once: Annotated[int, typer.Option(min=1, help="Processes that compile at once.")] = 1,
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
    one: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
) -> None:
    """Time, memory and floor of a training step, setting by setting."""
    if one is not None:
        child(one)
        return
    import torch

    from recipes.environment import describe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = [
        Setting(t, k, kind, None, optimizer, (), divide)
        for k in tokens or (4096, 8192)
        for t in ttt or (3, 4, 5)
        for kind in loss or ("eager", "fused")
    ]
    smallest = [
        next(setting for setting in first if setting.loss == kind)
        for kind in dict.fromkeys(setting.loss for setting in first)
    ]
    patched = [
        Setting(**asdict(s) | {"patches": tuple(names.split("+"))})
        for names in patches or ()
        for s in first
    ]
    settings = [
        *first,
        *(Setting(**asdict(s) | {"softcap": cap}) for cap in softcap or () for s in smallest),
        *patched,
        *(
            Setting(**asdict(s) | {"deterministic": True})
            for s in (*first, *patched)
            if deterministic and s.loss == "eager"  # the fused one picks its tile by timing
        ),
    ]
    seen: dict[str, Any] = {"device": "cpu", "ceilings": {}}
    if device == "cuda":  # in a process of its own: a context here would count as the settings'
        seen = json.loads(start({"device": device}).stdout.strip().splitlines()[-1])
    path = out or RESULTS / f"train_step_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        **seen,
        "environment": describe(),
        "settings": [],
    }

    def keep(found: dict[str, Any]) -> None:
        record["settings"].append(found)
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(json.dumps({k: found.get(k) for k in ("name", "tokens_per_s", "error")}), flush=True)

    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(at_once) as pool:
        lock = Path(os.environ.get("BENCH_TURN", str(Path(work) / "turn")))
        # The first alone: it fills the compiler's cache, and sees the device without others.
        keep(run_one(settings[0], lock, steps, seen["ceilings"]))
        rest = [pool.submit(run_one, one, lock, steps, seen["ceilings"]) for one in settings[1:]]
        for found in as_completed(rest):
            keep(found.result())
    print(f"written: {path}")


if __name__ == "__main__":
    typer.run(main)
