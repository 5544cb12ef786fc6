"""How long a checkpoint stops training, and what it costs beside it, for three ways of saving.

    python -m benchmarks.checkpoint_stall                 # a GPU, real size
    python -m benchmarks.checkpoint_stall --divide 8      # a CPU: all widths divided by 8

Upstream's checkpointer, `torch.distributed.checkpoint.async_save` of the same state, and ours, in
turn in one process, each on a drafter of its own that trains with upstream's step
(`real_size.Training`). Each way saves once unmeasured, then `--saves` times. Reported per way:

- stop: seconds from the call until the loop could go on, device synchronised before and after;
- background: seconds from the call until the checkpoint is complete (committed, or its future);
- while writing: median step time while it was written, over the median step time before;
- bytes of one checkpoint on the disk.
"""

from __future__ import annotations

import json
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

        state = TrainingState(training.model, training.optimizers, training.schedulers)
        self._saves = RunCheckpoints(folder, state, [], when=When(None, None))
        self._folder, self._training = folder, training

    def _checked(self) -> dict[str, Any]:
        """What the patch does while training stands: no tensor with a NaN is ever written."""
        from speculators_patches import finite

        training = self._training
        finite.assert_finite(finite.trained_state(training.model, training.optimizers))
        return {}

    def save(self, number: int) -> Path:
        from speculators_patches.checkpointing.cursor import Cursor

        if not self._saves.save(Cursor(0, number, number), "bench", extra=self._checked):
            raise SystemExit("the save before was still being written; this machine is too slow")
        return self._folder / f"ckpt-{number:06d}-step-{number:08d}"

    def writing(self) -> bool:
        return self._saves._writer.busy

    def close(self) -> None:
        self._saves.close()


def measure(
    way: Way, step: Callable[[], float], device: str, saves: int, before: int
) -> dict[str, Any]:
    """Timings of one way; see the module's docstring.

    Args:
        step: one training step, synchronised; its seconds.
        before: steps timed before each save.
    """
    stops, backgrounds, quiet, busy, sizes = [], [], [], [], []
    for number in range(1, saves + 2):
        calm = [step() for _ in range(before)]
        synchronise(device)
        began = time.perf_counter()
        path = way.save(number)
        synchronise(device)
        stop = time.perf_counter() - began
        during = []
        while way.writing():
            during.append(step())
        background = time.perf_counter() - began
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if number == 1:
            continue  # first allocations, unmeasured
        stops.append(stop)
        backgrounds.append(background)
        sizes.append(size)
        quiet += calm
        busy += during
    way.close()
    return {
        "way": way.name,
        "stop_s": _spread(stops),
        "background_s": _spread(backgrounds),
        "bytes": statistics.median(sizes),
        "step_before_s": _spread(quiet),
        "step_while_writing_s": _spread(busy) if busy else None,
        "while_writing_ratio": (
            round(statistics.median(busy) / statistics.median(quiet), 3) if busy else None
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
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for kind in (Upstream, Dcp, Ours):
            training = Training(size, device)
            data = [batch(size, training.model, seed) for seed in range(4)]
            turn = iter(range(10**9))

            def step(training: Training = training, data: Any = data, turn: Any = turn) -> float:
                began = time.perf_counter()
                training.step(data[next(turn) % len(data)])
                synchronise(device)
                return time.perf_counter() - began

            step()
            place = Path(work) / kind.__name__
            rows.append(measure(kind(training, place), step, device, saves, before))
            print(json.dumps(rows[-1]), flush=True)
            shutil.rmtree(place, ignore_errors=True)
            trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
            del training, data
    ours, upstream = rows[-1], rows[0]
    record = {
        "command": "python -m benchmarks.checkpoint_stall"
        f" --divide {divide} --tokens {tokens} --saves {saves} --before {before}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "size": {"divide": divide, "tokens": tokens, "trained_parameters": trained},
        "environment": describe(),
        "ways": rows,
        "stop_shorter_than_upstream": round(
            upstream["stop_s"]["median"] / ours["stop_s"]["median"], 1
        ),
    }
    path = out or RESULTS / f"checkpoint_stall_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"ours stops training {record['stop_shorter_than_upstream']} times shorter: {path}")


if __name__ == "__main__":
    typer.run(main)
