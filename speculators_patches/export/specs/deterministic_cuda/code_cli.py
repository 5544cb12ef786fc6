"""For `speculators/train/cli.py`."""

import os

import torch


def algorithms():
    # cuBLAS reads this at its first use; 4096 KiB x 8 is PyTorch's own advice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # A function compiled for one length and then for any runs other code in the
    # first step of a process than in each later one; a resumed run would differ.
    dynamo = torch._dynamo.config  # noqa: SLF001
    dynamo.automatic_dynamic_shapes = False
    dynamo.recompile_limit = max(64, dynamo.recompile_limit)
    # P-EAGLE's steps, each of another length, stay compiled for any of them.
    from speculators.models.peagle.core import PEagleDraftModel  # noqa: PLC0415

    any_length = dynamo.patch(automatic_dynamic_shapes=True)
    PEagleDraftModel.forward = any_length(PEagleDraftModel.forward)  # type: ignore[method-assign]
