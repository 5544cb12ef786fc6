"""Are these tensors finite? One answer for the trainer and for whoever writes a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from speculators_patches.stops import RunStopped

if TYPE_CHECKING:
    import torch


class NonFiniteState(RunStopped):
    """A tensor that was about to be saved holds NaN or infinity; the text names the first few."""


def nonfinite(named: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the floating tensors (any shape, dtype, device) that hold a NaN or an infinity.

    One pass over the data without a copy, and one synchronisation a device. Of a sharded DTensor
    this rank's shard is looked at. Integer and empty tensors are always finite.
    """
    import torch

    names: dict[torch.device, list[str]] = {}
    extremes: dict[torch.device, list[torch.Tensor]] = {}
    for name, tensor in named:
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if not local.is_floating_point() or local.numel() == 0 or local.is_meta:
            continue
        # aminmax hands a NaN on, so both ends finite means all are.
        low, high = torch.aminmax(local.detach())
        names.setdefault(local.device, []).append(name)
        extremes.setdefault(local.device, []).append(torch.stack((low, high)).float())
    found = []
    for device, pairs in extremes.items():
        bad = ~torch.isfinite(torch.stack(pairs)).all(dim=1)
        found += [name for name, is_bad in zip(names[device], bad.tolist(), strict=True) if is_bad]
    return found


def assert_finite(named: Iterable[tuple[str, torch.Tensor]], what: str = "the checkpoint") -> None:
    """Call before a checkpoint is committed.

    Args:
        named: (name, tensor) pairs, see `nonfinite`.
        what: what would have been written, for the message.

    Raises:
        NonFiniteState: at least one tensor holds NaN or infinity.
    """
    bad = nonfinite(named)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise NonFiniteState(
            f"{what} was not written: NaN or infinity in {', '.join(bad[:3])}{more}; "
            "resume from the checkpoint before"
        )


def trained_state(model: Any, optimizers: Iterable[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and tensor of every trained weight and of every optimizer state tensor.

    Frozen weights are left out: upstream fills heads that it has not loaded with NaN.
    """
    import torch

    names = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            names[parameter] = name
            yield name, parameter
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, torch.Tensor):
                    yield f"{names.get(parameter, 'a weight')}.{key}", value
