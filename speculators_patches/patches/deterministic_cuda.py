"""`--deterministic-cuda` makes training on a GPU repeat itself, which is what its help says.

Upstream's flag sets two options of cuDNN, whose kernels the drafter does not use. What it does use
may differ from run to run all the same: inductor picks the tiles of its reductions by timing them,
operations add with atomics, and cuBLAS may take another workspace. So a run that was stopped and
resumed is not the uninterrupted one to the last bit, although its checkpoint was exact (on an H100
the losses of two runs of one command differed in the fifth digit after 12 steps).

With this patch the flag also turns on `torch.use_deterministic_algorithms`, which since torch 2.10
includes inductor's deterministic mode, and gives cuBLAS the fixed workspace that this needs, unless
CUBLAS_WORKSPACE_CONFIG is set already. An operation without a deterministic kernel then raises, by
name, instead of being different each time.

Which kernels a step runs must not depend on what the process computed before it, either. Each
training-time-test position lengthens the keys, so dynamo compiles a function for the first length
it meets and, at the second, once more for any length; from then on the general one may serve the
first length too. The first step of a process therefore runs other kernels than every later one, and
a run resumed at step 14 is not, at step 14, the run that went through it (seen on an H100: equal
losses before the kill, another in the fifth digit three steps after resuming). So the flag also has
dynamo compile for each length by itself, and not give up after eight of them. P-EAGLE draws another
number of positions at each step: it would be compiled at each step and, after 64, not at all, so it
is left as upstream has it, and its first step still runs other code. Without the flag nothing
changes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_SEED = "speculators.train.cli:set_seed"

PATCH = Patch(
    name="deterministic_cuda",
    defect="`--deterministic-cuda` leaves the GPU free to choose its kernels by timing and to add "
    "in any order, and a process's first step runs other compiled code than its later ones: a "
    "resumed run is another run, by rounding.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.cli",
            "set_seed",
            fingerprints={">=0.8.1,<0.9.1": "5e5284a73cf40635"},
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream's flag calls torch.use_deterministic_algorithms, and which code a step "
    "runs does not depend on the steps before it",
    proof="tests/faults/test_deterministic_cuda.py::test_the_flag_reaches_every_operation",
    tested=("0.8.1", "0.9.0"),
)

_original: Any = None


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Upstream's seeds; with `deterministic`, deterministic kernels for what draws none.

    Args:
        seed: of Python's, NumPy's and torch's generators.
        deterministic: also PyTorch's deterministic mode, and compiled code that does not depend on
            which shapes came first, for the rest of the process.
    """
    _original(seed, deterministic)
    if deterministic:
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first use
        torch.use_deterministic_algorithms(True)
        dynamo = torch._dynamo.config
        dynamo.automatic_dynamic_shapes = False
        dynamo.recompile_limit = max(64, dynamo.recompile_limit)
        _leave_out_peagle()


def _leave_out_peagle() -> None:
    """P-EAGLE's steps, each of another length, are compiled for any length as before."""
    import torch
    from speculators.models.peagle.core import PEagleDraftModel as Drafter

    if not hasattr(Drafter.forward, "_any_length"):  # seeds may be set again
        forward = torch._dynamo.config.patch(automatic_dynamic_shapes=True)(Drafter.forward)
        forward._any_length = True
        Drafter.forward = forward


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _original
    _original = originals[_SEED]
    return {_SEED: set_seed}
