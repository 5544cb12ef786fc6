"""How far a resumed run is from the one that was never stopped, upstream's way and ours.

    python -m benchmarks.resume_drift                # a GPU, real size, deterministic kernels
    python -m benchmarks.resume_drift --divide 8     # a CPU

A drafter trains `--before` steps with upstream's step (`real_size.Training`) and is saved both
ways. Then it trains `--after` more: the run that was left alone. From each checkpoint a fresh
drafter is restored, with another seed, and trains the same batches. Reported: the first loss after
resuming, the largest and the Euclidean distance of the weights after `--after` steps, and whether
weights and moments are bitwise equal.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path(__file__).parent / "results"


def restore_upstream(training: Any, folder: Path) -> None:
    """As upstream's trainer does it: weights, optimizers, schedules."""
    from speculators.train.checkpointer import SingleGPUCheckpointer

    checkpointer = SingleGPUCheckpointer(folder)
    checkpointer.load_model_state_dict(training.model)
    checkpointer.load_optimizer_state_dict(training.model, training.optimizers)
    checkpointer.load_scheduler_state_dict(training.schedulers)


def save_upstream(training: Any, folder: Path) -> None:
    from speculators.train.checkpointer import SingleGPUCheckpointer

    checkpointer = SingleGPUCheckpointer(folder)
    checkpointer.save_checkpoint(training.model, training.optimizers, 0)
    checkpointer.save_scheduler_state_dict(training.schedulers, 0)


def _ours(training: Any, folder: Path) -> Any:
    from speculators_patches.checkpointing.run import RunCheckpoints
    from speculators_patches.checkpointing.state import TrainingState

    return RunCheckpoints(
        folder, TrainingState(training.model, training.optimizers, training.schedulers), []
    )


def restore_ours(training: Any, folder: Path) -> None:
    with _ours(training, folder) as saves:
        found = saves.find()
        saves.restore(found)
        saves.restore_rng(found)


def save_ours(training: Any, folder: Path) -> None:
    from speculators_patches.checkpointing.cursor import Cursor

    with _ours(training, folder) as saves:
        if not saves.save(Cursor(0, 1, 1), "bench", commit_s=600):
            raise SystemExit(f"the checkpoint could not be written into {folder}")


def moments(training: Any) -> list[Any]:
    """Every tensor of the optimizers' state, copied."""
    return [
        value.detach().clone()
        for one in training.optimizers
        for state in one.state.values()
        for value in state.values()
        if hasattr(value, "detach")
    ]


def main(
    divide: Annotated[int, typer.Option(help="Divide all widths by this (1: real size).")] = 1,
    tokens: Annotated[int, typer.Option(help="Packed tokens a step.")] = 4096,
    before: Annotated[int, typer.Option(min=1, help="Steps before the checkpoint.")] = 20,
    after: Annotated[int, typer.Option(min=1, help="Steps after it.")] = 20,
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw",
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
) -> None:
    """Distance of a resumed run from the uninterrupted one."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA is initialised
    import torch

    from benchmarks.real_size import Size, Training, batch
    from recipes.environment import describe
    from speculators_patches import apply

    device = "cuda" if torch.cuda.is_available() else "cpu"
    apply(only=["cpu_training"])  # does nothing where there is a GPU
    torch.use_deterministic_algorithms(True)
    size = Size(divide, tokens)
    options: dict[str, Any] = {
        "optimizer": optimizer,
        "attention": "sdpa",
        "total_steps": before + after,
    }

    def train(training: Any, first: int, count: int) -> list[float]:
        return [float(training.step(batch(size, training.model, first + k))) for k in range(count)]

    alone = Training(size, device, **options)
    train(alone, 0, before)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        save_upstream(alone, Path(work) / "upstream")
        save_ours(alone, Path(work) / "ours")
        losses = train(alone, before, after)
        weights, state = alone.trained(), moments(alone)
        del alone
        for name, restore in (("upstream", restore_upstream), ("ours", restore_ours)):
            resumed = Training(size, device, seed=1, **options)
            _frozen_of_seed_0(resumed, size, device)
            restore(resumed, Path(work) / name)
            found = train(resumed, before, after)
            rows.append(
                row(name, losses, found, weights, resumed.trained(), state, moments(resumed))
            )
            print(json.dumps(rows[-1]), flush=True)
            del resumed
    record = {
        "command": f"python -m benchmarks.resume_drift --divide {divide} --tokens {tokens}"
        f" --before {before} --after {after} --optimizer {optimizer}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "environment": describe(),
        "first_loss_left_alone": losses[0],
        "ways": rows,
    }
    path = out or RESULTS / f"resume_drift_{optimizer}_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n")


def _frozen_of_seed_0(training: Any, size: Any, device: str) -> None:
    """The frozen weights come from the verifier in a real run; here from the first seed."""
    import torch

    from benchmarks.real_size import drafter

    source = dict(drafter(size, device, attention="sdpa").named_parameters())
    with torch.no_grad():
        for name, parameter in training.model.named_parameters():
            if not parameter.requires_grad:
                parameter.copy_(source[name])


def row(
    name: str,
    alone: list[float],
    resumed: list[float],
    weights: dict[str, Any],
    other: dict[str, Any],
    state: list[Any],
    other_state: list[Any],
) -> dict[str, Any]:
    """The distances of one way."""
    import torch

    gaps = [(weights[key].float() - other[key].float()).flatten() for key in weights]
    return {
        "way": name,
        "first_loss": resumed[0],
        "first_loss_difference": resumed[0] - alone[0],
        "largest_weight_difference": max(float(gap.abs().max()) for gap in gaps),
        "distance": float(torch.stack([gap.square().sum() for gap in gaps]).sum().sqrt()),
        "losses_equal": alone == resumed,
        "bitwise_equal": all(torch.equal(weights[key], other[key]) for key in weights)
        and all(torch.equal(a, b) for a, b in zip(state, other_state, strict=True)),
    }


if __name__ == "__main__":
    typer.run(main)
