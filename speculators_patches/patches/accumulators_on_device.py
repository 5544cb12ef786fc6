"""The forward pass makes its two constants on the GPU instead of waiting for it twice.

Upstream starts the sum of its losses with `torch.tensor(0.0, device=device)` and counts it with
`torch.tensor(1.0, device=device)`. Such a number is made on the host and copied, and PyTorch waits
for such a copy, and with it for all that the GPU has in its queue: behind the targets, and again at
the end. `torch.zeros` and `torch.ones` fill a number on the device. Values, dtype and device are
the same, and so are the weights, bitwise, on a CPU and on an H200. There the host keeps the lead
that it won while the GPU worked on the backward pass: beside `quick_draft_masks` and
`accuracy_without_waiting` a step takes 0.95 of the time, with deterministic kernels, which are many
more to launch, 0.82 (benchmarks/results/train_step_host_h200.json).

Steps that upstream logs wait for the GPU anyhow, at each of its marks (`--log-freq`, 1 by default).
0.7 and older do the same; tests begin with 0.8.1, as for the other patches of a step's speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import rewrite
from speculators_patches.registry import Patch, Target

_MODULE = "speculators.models.eagle3.core"
_FORWARD = f"{_MODULE}:Eagle3DraftModel.forward"
CHANGES = {
    "torch.tensor(0.0, device=device)": "torch.zeros((), device=device)",
    "torch.tensor(1.0, device=device)": "torch.ones((), device=device)",
}

PATCH = Patch(
    name="accumulators_on_device",
    defect="In each forward pass the host waits twice for the GPU, to write a 0 and a 1 to it.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            _MODULE,
            "Eagle3DraftModel.forward",
            fingerprints={">=0.7,<0.9.1": "9f82fc01b71405ff"},
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream makes both numbers on the device",
    proof="tests/faults/test_accumulators_on_device.py::test_no_number_is_copied_to_the_device",
    tested=("0.8.1", "0.9.0"),
)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`. First in the table, so that what it rewrites is upstream's own."""
    return {_FORWARD: rewrite.rewritten(originals[_FORWARD], CHANGES)}


def misfit(originals: Mapping[str, Any]) -> str | None:
    """See `registry`."""
    return rewrite.misfit(originals[_FORWARD], CHANGES)
