"""What a step takes in upstream's real trainer: with its logging, its loader and our patches.

    python -m benchmarks.trainer_rate                                # a GPU, real size
    python -m benchmarks.trainer_rate --divide 16 --tokens 128 --samples 12 --times 8   # a CPU

`train_step` times the bare step on batches that lie on the device. Here the whole program runs,
`speculators.train`, on cached hidden states of Gemma 4 26B-A4B's dimensions (as `kill_and_resume`
makes them; each file stands for `--times` conversations, so that they come from memory as those of
a producer do), in each of these ways, one process after another:

- upstream, every step logged: no patch, its default; it waits for the GPU at each phase of such a
  step;
- upstream, every tenth step logged: as the recipe does (`log_every`);
- overlay, every step logged: what `speculators_patches run` applies by itself;
- overlay: the same, every tenth step logged;
- overlay -PATCH: without one that is applied by default (`finite_guard` asks the GPU for its
  verdict on each step, so what that costs is to be known; without `unlocked_batch_release` the
  thread that pins batches holds Python's lock while what they lay in is freed);
- overlay, batches at hand: the loader's first batches again and again, so that the rest of it costs
  nothing;
- overlay, deterministic: with `--deterministic-cuda`.

Reported: seconds a step, median over blocks of ten that begin after the first third (least and
most beside it), all in one epoch and without a checkpoint; how long of each the trainer's Python
waited for its batch (`waited_s`, median), and, where every step is logged, the phases as upstream
times them; and the seconds until the first step was done: the start of Python, the model and
compiling, for which later ways find a cache.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.kill_and_resume import data, training_flags, verifier
from benchmarks.real_size import Size
from benchmarks.train_step import turn

RESULTS = Path(__file__).parent / "results"
BLOCK = 10
_LEAST = 46  # steps; the last two thirds of them have three blocks


@dataclass(frozen=True)
class Arm:
    """One way of running the trainer.

    Args:
        patched: with the patches that are applied by default.
        log_every: upstream's --log-freq.
        less: one of those left out.
        at_hand: no loader behind its first batches.
        deterministic: --deterministic-cuda.
    """

    patched: bool = True
    log_every: int = BLOCK
    less: str = ""
    at_hand: bool = False
    deterministic: bool = False

    @property
    def name(self) -> str:
        logged = ", every step logged" if self.log_every == 1 else ""
        if not self.patched and not logged:  # an earlier result calls the other one "upstream"
            logged = ", every tenth step logged"
        less = f" -{self.less}" if self.less else ""
        loading = ", batches at hand" if self.at_hand else ""
        kernels = ", deterministic" if self.deterministic else ""
        return f"{'overlay' if self.patched else 'upstream'}{less}{logged}{loading}{kernels}"


ARMS = (
    Arm(patched=False, log_every=1),
    Arm(patched=False),
    Arm(log_every=1),
    Arm(),
    Arm(less="accumulators_on_device"),
    Arm(less="finite_guard"),
    Arm(less="unlocked_batch_release"),
    Arm(at_hand=True),
    Arm(deterministic=True),
)


class Watched:
    """Upstream's loader, and how long each batch was waited for.

    Args:
        waited: gets the seconds, batch by batch.
        at_hand: asks for the first four batches only, and gives those again and again.
    """

    def __init__(self, loader: Any, waited: list[float], at_hand: bool) -> None:
        self._loader, self._waited, self._at_hand = loader, waited, at_hand

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._loader)
        if self._at_hand:
            first = list(itertools.islice(batches, 4))
            batches = itertools.islice(itertools.cycle(first), len(self))
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited.append(time.perf_counter() - began)
            yield batch


def child(order: dict[str, Any]) -> None:
    """Runs the trainer in this process; writes when each step was done."""
    from speculators_patches import apply
    from speculators_patches.overlay import defaults

    arm, began = Arm(**order["arm"]), time.perf_counter()
    if arm.patched:
        apply(only=[name for name in defaults() if name != arm.less])
    elif order["device"] == "cpu":
        apply(only=["cpu_training"])  # without it upstream does not start here
    from speculators.train import trainer

    from speculators_patches.step_checkpoints import loaders

    said: dict[str, list[Any]] = {"done": [], "waited": [], "phases": []}
    step = trainer.Trainer._schedulers_step  # the last of a step, under our patches as well
    epoch, phases = trainer.Trainer.train_epoch, trainer._StepTimer.profile

    def noted(self: Any) -> None:
        step(self)
        said["done"].append(time.perf_counter() - began)

    def profiled(self: Any, tokens: int) -> Any:
        found = phases(self, tokens)
        said["phases"].append({k: v for k, v in (found or {}).items() if k.endswith("_ms")})
        return found

    def watched(self: Any, *given: Any, **named: Any) -> Any:
        # Below what `step_checkpoints` puts around it, whose saves and looks are no waiting.
        holder, name = self, "train_loader"
        if isinstance(self.train_loader, loaders.Watched):
            holder, name = self.train_loader, "_loader"
        setattr(holder, name, Watched(getattr(holder, name), said["waited"], arm.at_hand))
        return epoch(self, *given, **named)  # one: --epochs 1

    trainer.Trainer._schedulers_step, trainer.Trainer.train_epoch = noted, watched
    trainer._StepTimer.profile = profiled
    sys.argv = ["speculators.train", *order["flags"]]
    try:
        runpy.run_module("speculators.train", run_name="__main__", alter_sys=True)
    finally:
        Path(order["times"]).write_text(json.dumps(said))


def blocks(done: list[float]) -> dict[str, Any]:
    """Seconds a step, from the moments at which steps were done.

    Raises:
        ValueError: there are fewer than three blocks behind the first third.
    """
    ends = done[len(done) // 3 :: BLOCK]
    found = [(b - a) / BLOCK for a, b in itertools.pairwise(ends)]
    if len(found) < 3:
        raise ValueError(f"{len(done)} steps are too few: at least {_LEAST}")
    return {
        "median": round(statistics.median(found), 5), "min": round(min(found), 5),
        "max": round(max(found), 5), "blocks": len(found), "steps_a_block": BLOCK,
    }  # fmt: skip


def waits(said: dict[str, list[Any]]) -> dict[str, Any]:
    """What the trainer said of its time, after the first third of the steps: medians.

    `waited_s` is of Python's waiting for a batch, which is the GPU's only where it has run out of
    work. `phases_s`, where every step is logged, is of the phases between which upstream waits for
    the GPU; its `queue` and `fetch` begin before the logging of the step before.
    """
    late = said["waited"][len(said["waited"]) // 3 :]
    found: dict[str, Any] = {"waited_s": round(statistics.median(late), 5)}
    if len(said["phases"]) == len(said["done"]):
        logged = said["phases"][len(said["phases"]) // 3 :]
        found["phases_s"] = {
            name.removesuffix("_ms"): round(statistics.median(x[name] for x in logged) / 1000, 5)
            for name in logged[0]
        }
    return found


def run(arm: Arm, work: Path, flags: list[str], device: str, timeout_s: float) -> dict[str, Any]:
    """One arm's record."""
    out, times = work / "out", work / "times.json"
    shutil.rmtree(out, ignore_errors=True)
    times.unlink(missing_ok=True)
    order = {
        "arm": asdict(arm), "device": device, "times": str(times),
        "flags": [
            *flags, "--log-freq", str(arm.log_every),
            *(["--deterministic-cuda"] if arm.deterministic else []),
        ],
    }  # fmt: skip
    record: dict[str, Any] = {"name": arm.name, "arm": asdict(arm)}
    log = work / "said"
    with log.open("w") as said:
        try:
            code: int | str = subprocess.run(
                [sys.executable, "-m", "benchmarks.trainer_rate", "--child", json.dumps(order)],
                stdout=said, stderr=subprocess.STDOUT, check=False, timeout=timeout_s,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = f"not done after {timeout_s:g} s (--timeout)"
    if code or not times.exists():
        last = log.read_text(errors="replace").strip().splitlines()[-25:]
        return record | {"error": [f"exit code {code}" if isinstance(code, int) else code, *last]}
    told = json.loads(times.read_text())
    moments = told["done"]
    record["steps"] = len(moments)
    try:
        record |= {"first_step_s": round(moments[0], 1)} if moments else {}
        return record | {"step_s": blocks(moments)} | waits(told)
    except ValueError as error:
        return record | {"error": [f"{error}; give more --times"]}


def main(
    arm: Annotated[list[str] | None, typer.Option(help="By name [all].")] = None,
    divide: Annotated[int, typer.Option(help="Divide all widths by this (1: real size).")] = 1,
    tokens: Annotated[int, typer.Option(help="Packed tokens a step.")] = 4096,
    samples: Annotated[int, typer.Option(help="Files of hidden states.")] = 40,
    times: Annotated[int, typer.Option(min=1, help="Conversations each stands for.")] = 12,
    ttt: Annotated[int, typer.Option(help="Positions trained.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="DataLoader workers.")] = 6,
    timeout: Annotated[float, typer.Option(help="Seconds for each process.")] = 600,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work (10 GB at real size) [a temporary folder].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
    one: Annotated[str | None, typer.Option("--child", hidden=True)] = None,
) -> None:
    """Seconds a step of the real trainer, way by way."""
    if one is not None:
        child(json.loads(one))
        return
    import torch

    from recipes.environment import command_line, describe

    named = {found.name: found for found in ARMS}
    if unknown := [name for name in arm or () if name not in named]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of: {'; '.join(named)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = Size(divide, tokens)
    path = out or RESULTS / f"trainer_rate_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        "command": command_line("benchmarks.trainer_rate"),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "environment": describe(),
        "size": {
            "divide": divide, "tokens": tokens, "samples": samples, "times": times, "ttt": ttt,
            "workers": workers,
        },
        "arms": [],
    }  # fmt: skip
    work = Path(tempfile.mkdtemp(dir=folder))
    lock = Path(os.environ.get("BENCH_TURN", str(work / "turn")))
    try:
        data(work / "data", verifier(work / "verifier", size), size, samples, times)
        flags = [
            *training_flags(size, device, ttt, "eager"), "--optimizer", "adamw",
            "--epochs", "1", "--num-workers", str(workers), "--checkpoint-freq", "1",
            "--verifier-name-or-path", str(work / "verifier"), "--data-path", str(work / "data"),
            "--save-path", str(work / "out"), "--log-dir", str(work / "logs"),
        ]  # fmt: skip
        for name in arm or named:
            with turn(lock, alone=True):
                found = run(named[name], work, flags, device, timeout)
            record["arms"].append(found)
            path.write_text(json.dumps(record, indent=1) + "\n")
            print(
                json.dumps({k: found.get(k) for k in ("name", "step_s", "waited_s", "error")}),
                flush=True,
            )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"written: {path}")
    if any("error" in found for found in record["arms"]):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
