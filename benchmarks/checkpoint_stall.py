"""How long a checkpoint stops training, and what it costs beside it, for three ways of saving.

    python -m benchmarks.checkpoint_stall                 # a GPU, real size
    python -m benchmarks.checkpoint_stall --divide 8      # a CPU: all widths divided by 8

Upstream's checkpointer, `torch.distributed.checkpoint.async_save` of the same state, and ours, in
one process, each on a drafter of its own that trains with upstream's step (`real_size.Training`).
They save in turn, once unmeasured, then `--saves` times. Reported per way:

- stop: seconds from the call until the loop could go on, device synchronised before and after,
  and what the next steps waited for copies still under way;
- background: seconds from the call until the checkpoint is complete (committed, or its future);
- while writing: median step time while it was written, over the median step time before;
- bytes of one checkpoint on the disk.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer

from benchmarks.real_size import Size, Training, batch, synchronise
from recipes.environment import describe

RESULTS = Path(__file__).parent / "results"


class Way(Protocol):
    """One way of saving; `save` may return while it still writes."""

    name: str

    def save(self, number: int) -> Path: ...

    def writing(self) -> bool: ...

    def waited_s(self) -> float:
        """Seconds that steps have waited for a save's copies so far."""
        return 0.0

    def tidy(self, number: int) -> None:
        """Remove save `number`, where a way does not keep to the newest few itself."""

    def close(self) -> None: ...


class Upstream:
    """Model, optimizer and schedule as upstream 0.8.1 and 0.9.0 save them: bf16, in the loop."""

    name = "upstream"

    def __init__(self, training: Training, folder: Path) -> None:
        from speculators.train.checkpointer import SingleGPUCheckpointer

        self._training, self._folder = training, folder
        self._checkpointer = SingleGPUCheckpointer(folder)

    def save(self, number: int) -> Path:
        training = self._training
        self._checkpointer.save_checkpoint(training.model, training.optimizers, number)
        self._checkpointer.save_scheduler_state_dict(training.schedulers, number)
        return self._folder / str(number)

    def writing(self) -> bool:
        return False

    def waited_s(self) -> float:
        return 0.0

    def tidy(self, number: int) -> None:
        shutil.rmtree(self._folder / str(number), ignore_errors=True)

    def close(self) -> None:
        pass


class Dcp:
    """torch's asynchronous checkpoint of what trained and its moments."""

    name = "torch DCP async_save"

    def __init__(self, training: Training, folder: Path) -> None:
        self._training, self._folder = training, folder
        self._future: Any = None

    def save(self, number: int) -> Path:
        from torch.distributed.checkpoint.state_dict_saver import async_save

        state = {
            "model": {
                name: p.detach()
                for name, p in self._training.model.named_parameters()
                if p.requires_grad
            },
            "optimizers": [one.state_dict() for one in self._training.optimizers],
        }
        path = self._folder / str(number)
        self._future = async_save(state, checkpoint_id=path, no_dist=True)
        return path

    def writing(self) -> bool:
        return self._future is not None and not self._future.done()

    def waited_s(self) -> float:
        return 0.0

    def tidy(self, number: int) -> None:
        shutil.rmtree(self._folder / str(number), ignore_errors=True)

    def close(self) -> None:
        if self._future is not None:
            self._future.result()


class Ours:
    """`speculators_patches.checkpointing`, as the patch step_checkpoints drives it."""

    name = "ours"

    def __init__(self, training: Training, folder: Path) -> None:
        from speculators_patches.checkpointing.policy import When
        from speculators_patches.checkpointing.run import RunCheckpoints
        from speculators_patches.checkpointing.state import TrainingState
        from speculators_patches.finite import assert_finite

        state = TrainingState(training.model, training.optimizers, training.schedulers)
        # As the patch does: no tensor with a NaN is ever written. In the background.
        self._saves = RunCheckpoints(
            folder, state, [], when=When(None, None), check=lambda t: assert_finite(t.items())
        )
        self._folder, self._state = folder, state

    def save(self, number: int) -> Path:
        from speculators_patches.checkpointing.cursor import Cursor

        if not self._saves.save(Cursor(0, number, number), "bench"):
            raise SystemExit("the save before was still being written; this machine is too slow")
        return self._folder / f"ckpt-{number:06d}-step-{number:08d}"

    def writing(self) -> bool:
        return self._saves._writer.busy

    def waited_s(self) -> float:
        return self._state.waited_s

    def tidy(self, number: int) -> None:
        pass  # its own retention

    def close(self) -> None:
        self._saves.close()


class Measured:
    """Timings of one way; see the module's docstring.

    Args:
        step: one training step, synchronised; its seconds.
        before: steps timed before each save.
    """

    def __init__(self, way: Way, step: Callable[[], float], device: str, before: int) -> None:
        self.way = way
        self._step, self._device, self._before = step, device, before
        self._number = 0
        self._times: dict[str, list[float]] = {
            name: [] for name in ("stop", "background", "bytes", "before", "while")
        }

    def save(self) -> None:
        """Steps, one save, and steps until it is written. The first one only allocates."""
        self._number += 1
        calm = [self._step() for _ in range(self._before)]
        synchronise(self._device)
        began = time.perf_counter()
        path = self.way.save(self._number)
        synchronise(self._device)
        stop = time.perf_counter() - began
        waited = self.way.waited_s()
        during = []
        while self.way.writing():
            during.append(self._step())
        background = time.perf_counter() - began
        if self._number > 1:
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            times = self._times
            times["stop"].append(stop + self.way.waited_s() - waited)
            times["background"].append(background)
            times["bytes"].append(size)
            times["before"] += calm
            times["while"] += during
        self.way.tidy(self._number - 1)

    def row(self) -> dict[str, Any]:
        times = self._times
        return {
            "way": self.way.name,
            "stop_s": _spread(times["stop"]),
            "background_s": _spread(times["background"]),
            "bytes": statistics.median(times["bytes"]),
            "step_before_s": _spread(times["before"]),
            "step_while_writing_s": _spread(times["while"]) if times["while"] else None,
            "while_writing_ratio": (
                round(statistics.median(times["while"]) / statistics.median(times["before"]), 3)
                if times["while"]
                else None
            ),
        }


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "min": round(ordered[0], 5),
        "median": round(statistics.median(ordered), 5),
        "max": round(ordered[-1], 5),
        "count": len(ordered),
    }


def _stepper(training: Training, size: Size, device: str) -> Callable[[], float]:
    data = [batch(size, training.model, seed) for seed in range(4)]
    turn = itertools.cycle(data)

    def step() -> float:
        began = time.perf_counter()
        training.step(next(turn))
        synchronise(device)
        return time.perf_counter() - began

    return step


def main(
    divide: Annotated[int, typer.Option(help="Divide all widths by this (1: real size).")] = 1,
    tokens: Annotated[int, typer.Option(help="Packed tokens a step.")] = 4096,
    saves: Annotated[int, typer.Option(min=1, help="Measured saves of each way.")] = 5,
    before: Annotated[int, typer.Option(min=1, help="Steps before each save.")] = 5,
    folder: Annotated[
        Path | None, typer.Option(help="Where to save (a disk) [default: a temporary folder].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
) -> None:
    """Training stopped per save: upstream, torch DCP and ours in one run."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = Size(divide, tokens)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        ways = []
        for kind in (Upstream, Dcp, Ours):
            training = Training(size, device)
            way = kind(training, Path(work) / kind.__name__)
            ways.append(Measured(way, _stepper(training, size, device), device, before))
        for _ in range(saves + 1):  # in turn, so that what else the machine does meets all alike
            for one in ways:
                one.save()
        rows = [one.row() for one in ways]
        for one in ways:
            print(json.dumps(one.row()), flush=True)
            one.way.close()
    trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
    ours, upstream = rows[-1], rows[0]
    record = {
        "command": "python -m benchmarks.checkpoint_stall"
        f" --divide {divide} --tokens {tokens} --saves {saves} --before {before}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "size": {"divide": divide, "tokens": tokens, "trained_parameters": trained},
        "environment": describe(),
        "load": {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)},
        "ways": rows,
        "stop_shorter_than_upstream": round(
            upstream["stop_s"]["median"] / ours["stop_s"]["median"], 1
        ),
        "stop_shorter_than_upstream_at_best": round(
            upstream["stop_s"]["min"] / ours["stop_s"]["min"], 1
        ),
    }
    path = out or RESULTS / f"checkpoint_stall_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"ours stops training {record['stop_shorter_than_upstream']} times shorter: {path}")


if __name__ == "__main__":
    typer.run(main)
