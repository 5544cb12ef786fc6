"""A small run that uses everything a checkpoint must bring back. Not a test module.

Deterministic on the CPU: dropout (torch), the batch (numpy) and a weight (Python's random) draw
from the global generators, so that one of them lost shows in the next loss.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speculators_patches.checkpointing.cursor import Cursor
from speculators_patches.checkpointing.fingerprint import Field
from speculators_patches.checkpointing.policy import Keep, When
from speculators_patches.checkpointing.run import RunCheckpoints
from speculators_patches.checkpointing.state import TrainingState

OPTIMIZERS = ("muon+adamw", "adamw", "adamw-amsgrad", "sgd", "lion-fp32")
DTYPES = ("float32", "bfloat16", "mixed")


class Fp32Momentum(torch.optim.Optimizer):
    """Keeps fp32 moments and a Python step count for bf16 weights: `load_state_dict` would cast."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(count=0, mean=torch.zeros_like(p, dtype=torch.float32))
                state["count"] += 1
                state["mean"].lerp_(p.grad.float(), 1 - group["betas"][0])
                p.add_((state["mean"].sign() * -group["lr"] / state["count"]).to(p.dtype))


class Net(torch.nn.Module):
    def __init__(self, dtype: str):
        super().__init__()
        self.embed = torch.nn.Embedding(32, 8)
        self.fc = torch.nn.Linear(8, 12)
        self.out = torch.nn.Linear(12, 4, bias=False)
        self.norm = torch.nn.BatchNorm1d(12)
        self.register_buffer("t2d", torch.arange(32) % 3 == 0)
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.embed.weight.requires_grad_(False)
        if dtype != "float32":
            self.out.to(torch.bfloat16)
        if dtype == "bfloat16":
            self.fc.to(torch.bfloat16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.fc(self.embed(ids).to(self.fc.weight.dtype)).float()
        hidden = torch.nn.functional.dropout(self.norm(hidden), 0.2, self.training)
        return self.out(hidden.to(self.out.weight.dtype)).float()


@dataclass
class Run:
    model: Net
    optimizers: list[torch.optim.Optimizer]
    schedulers: list[Any]

    def __post_init__(self) -> None:
        self.state = TrainingState(self.model, self.optimizers, self.schedulers)

    def train(self, steps: int) -> list[float]:
        """Train `steps` steps; their losses."""
        losses = []
        for _ in range(steps):
            ids = torch.from_numpy(np.random.randint(0, 32, size=16))
            loss = self.model(ids).square().mean() * (0.5 + random.random())
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for one in [*self.optimizers, *self.schedulers]:
                one.step()
            losses.append(loss.item())
        return losses

    def bits(self) -> dict[str, Any]:
        """Everything that must be equal, as bytes and plain values."""
        result: dict[str, Any] = {
            f"model/{name}": raw(tensor) for name, tensor in self.model.state_dict().items()
        }
        for i, optimizer in enumerate(self.optimizers):
            content = optimizer.state_dict()
            result[f"groups/{i}"] = [sorted(g.items()) for g in content["param_groups"]]
            for index, entries in content["state"].items():
                for key, value in entries.items():
                    result[f"state/{i}/{index}/{key}"] = (
                        raw(value) if isinstance(value, torch.Tensor) else value
                    )
        for i, scheduler in enumerate(self.schedulers):
            result[f"scheduler/{i}"] = repr(scheduler.state_dict())
        return result


def raw(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return str(tensor.dtype), tuple(tensor.shape), flat.numpy().tobytes()


def build(optimizer: str = "muon+adamw", dtype: str = "mixed", draws: int = 0) -> Run:
    """A fresh run from seed 0; `draws` numbers are then drawn, as another process might."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = Net(dtype)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    matrices = [(n, p) for n, p in trained if p.ndim == 2]
    others = [(n, p) for n, p in trained if p.ndim != 2]
    optimizers: list[torch.optim.Optimizer]
    if optimizer == "muon+adamw":
        optimizers = [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=1e-3)]
    elif optimizer.startswith("adamw"):
        optimizers = [torch.optim.AdamW(trained, lr=1e-2, amsgrad=optimizer.endswith("amsgrad"))]
    elif optimizer == "sgd":
        groups = [
            {"params": [p for _, p in matrices], "lr": 0.1},
            {"params": [p for _, p in others]},
        ]
        optimizers = [torch.optim.SGD(groups, lr=0.01, momentum=0.9)]
    else:
        optimizers = [Fp32Momentum([p for _, p in trained], lr=1e-2)]
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda i: min(1.0, (i + 1) / 7))
        for one in optimizers
    ]
    for _ in range(draws):
        random.random(), np.random.rand(), torch.rand(1)
    return Run(model, optimizers, schedulers)


def checkpoints(root: Path, run: Run, **options: Any) -> RunCheckpoints:
    """Saves for `run` in `root`, only when asked, unless `options` say otherwise."""
    options = {"when": When(None, None), "keep": Keep(), **options}
    return RunCheckpoints(root, run.state, [Field("data.seed", 0)], **options)


def at(step: int) -> Cursor:
    return Cursor(epoch=0, local_step=step, global_step=step, consumed_samples=16 * step)
