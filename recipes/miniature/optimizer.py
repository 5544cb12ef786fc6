"""The optimizers of the miniature's body.

AdamW alone needs about three times the steps to learn the invented facts, and the body has one
minute on two cores. Muon (Keller Jordan, 2024: momentum, orthogonalised by five Newton-Schulz
iterations) gets there, and is written out here because ``torch.optim.Muon`` takes no stacked
expert matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def orthogonalised(update: torch.Tensor) -> torch.Tensor:
    """``update`` ``[..., rows, columns]`` with its singular values brought near 1, per matrix."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.size(-2) > update.size(-1)
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon over matrices ``[..., rows, columns]``; leading dimensions are separate matrices."""

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients; parameters without one stay as they are."""
        if closure is not None:
            raise ValueError("This Muon takes no closure; call backward() before step().")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                average = state.setdefault("average", torch.zeros_like(parameter))
                average.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalised(parameter.grad.lerp(average, group["momentum"]))
                rows, columns = parameter.shape[-2:]
                parameter.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def adamw(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """AdamW without weight decay."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)


def fast_optimizers(
    model: torch.nn.Module, matrix_lr: float, other_lr: float
) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embedding, router, norms and scales."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.dim() >= 2 and "embed" not in n and "router" not in n]
    taken = {id(p) for p in matrices}
    return [
        Muon(matrices, matrix_lr),
        adamw([p for _, p in named if id(p) not in taken], other_lr),
    ]
