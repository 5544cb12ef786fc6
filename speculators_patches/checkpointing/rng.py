"""The random generators of one rank: Python, numpy, torch on the CPU and on its accelerator."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from speculators_patches.checkpointing.errors import CorruptError


def _accelerator() -> tuple[str, Any] | None:
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return None
    return device.type, torch.get_device_module(device)


def capture() -> dict[str, Any]:
    """The four states, as a tree of plain values and uint8 tensors. Waits for no device."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    keys = np.asarray(keys)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), keys.tobytes(), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "accelerator": None,
    }
    if found := _accelerator():
        state["accelerator"] = {"type": found[0], "state": found[1].get_rng_state()}
    return state


def restore(state: Mapping[str, Any]) -> None:
    """Set the generators. Call it last, right before the next batch is used.

    A new DataLoader iterator draws from torch's CPU generator, so restoring earlier is inexact.

    Raises:
        CorruptError: a generator's state is not one.
        ValueError: the state was taken on another kind of accelerator.
    """
    saved = state["accelerator"]
    found = _accelerator()
    if saved is not None and (found is None or found[0] != saved["type"]):
        raise ValueError(
            f"the checkpoint holds the random state of a {saved['type']} device; this process has "
            f"{found[0] if found else 'no accelerator'}, so the run can't go on exactly"
        )
    try:
        random.setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, np.frombuffer(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if saved is not None and found is not None:
            found[1].set_rng_state(saved["state"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise CorruptError(f"a random generator's state can't be set: {error}") from None
