"""Where the text goes on with a token that the drafter cannot say, it is taught nothing.

With a pruned vocabulary upstream trains every position against the verifier's distribution over the
draft vocabulary alone, renormalised. Where most of the verifier's mass lies outside, that teaches
the drafter, at full weight, what the verifier says next to never.

Left out here are the positions whose next token in the text is outside the draft vocabulary. The
text is the verifier's own, so on average a position is kept as often as the verifier says something
sayable there: in expectation every position counts with its true share of mass inside the
vocabulary, without logits over the whole vocabulary.

Only where SPECULATORS_PATCHES_UNSAYABLE is "mask"; by default upstream's way stays (measured:
benchmarks/README.md). Acceptance is counted over all positions either way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches.patches.accuracy_denominators import acceptance
from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

_FORWARD = "speculators.models.eagle3.core:Eagle3DraftModel.forward"
SETTING = "SPECULATORS_PATCHES_UNSAYABLE"

PATCH = Patch(
    name="unsayable_positions",
    defect="With a pruned vocabulary, positions whose next token the drafter cannot say train it "
    "at full weight on what is left of the verifier's distribution (changed only if asked for).",
    needed=SpecifierSet(">=0.7"),
    targets=(
        Target(
            "speculators.models.eagle3.core",
            "Eagle3DraftModel.forward",
            fingerprints={">=0.7,<0.9.1": "9f82fc01b71405ff"},
        ),
        # What is compared with what at each step: the mask moves with the targets.
        Target(
            "speculators.models.eagle3.metrics",
            "align_for_step",
            fingerprints={">=0.7,<0.9.1": "b79d76c0dff5a1b6"},
            observed=True,
        ),
        Target(
            "speculators.models.eagle3.data",
            "shift_batch",
            fingerprints={">=0.7,<0.9.1": "173b79692c74a0e5"},
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream weights positions by the share of mass inside the draft vocabulary",
    proof="tests/faults/test_unsayable_positions.py::test_what_cannot_be_said_is_not_taught",
    changes_learning=True,
    tested=("0.7.0.2", "0.8.1", "0.9.0"),
)

_forward: Any = None


def sayable(input_ids: torch.Tensor, t2d: torch.Tensor) -> torch.Tensor:
    """Where the next token of the text is in the draft vocabulary.

    Args:
        input_ids: [1, tokens] int64, full vocabulary, as `shift_batch` gives them: at
            position i the drafter is taught what comes after token i.
        t2d: [vocabulary] bool, set for what the drafter can say.

    Returns:
        [1, tokens] bool; the last position, whose next token is not there, counts.
    """
    import torch

    following = t2d.to(torch.bool)[input_ids[:, 1:]]
    return torch.cat([following, torch.ones_like(following[:, :1])], dim=1)


def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's; in training on a pruned vocabulary, with the mask of what can be said."""
    mask, ids, t2d = kwargs.get("loss_mask"), kwargs.get("input_ids"), getattr(self, "t2d", None)
    if os.environ.get(SETTING) != "mask" or mask is None or ids is None or t2d is None:
        return _forward(self, *args, **kwargs)
    if ids.shape[1] == 0:
        return _forward(self, *args, **kwargs)
    taught = mask * sayable(ids, t2d).to(mask.dtype)
    output = _forward(self, *args, **{**kwargs, "loss_mask": taught})
    if isinstance(output, tuple) and "accept_0_sum" in output[2]:
        output[2].update(acceptance(output[0], ids, mask, self.d2t))
    return output


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _forward
    _forward = originals[_FORWARD]
    return {_FORWARD: forward}
