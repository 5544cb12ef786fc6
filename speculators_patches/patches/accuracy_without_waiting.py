"""The accuracy of a position is counted on the GPU, without asking it how many tokens count.

Upstream picks the judged tokens with `masked_select`, whose result has as many elements as the mask
has set: the host waits for everything in the queue, and the compiled graph is cut, at every
training-time-test position. The same two numbers come from a product with the mask. On an H100 a
step takes 0.92 of the time (with `quick_draft_masks` 0.81), and the weights are bitwise the same
(ttt_steps 3, 4096 tokens; benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

_MODULE = "speculators.models.metrics"
_COUNT = f"{_MODULE}:compute_accuracy_single_step"

PATCH = Patch(
    name="accuracy_without_waiting",
    defect="At each training-time-test position the host waits for the GPU, only to count how many "
    "drafts were right.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            _MODULE,
            "compute_accuracy_single_step",
            fingerprints={">=0.7,<0.9.1": "d08bec6785c35396"},
            aliases=("speculators.models.eagle3.metrics",),
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream counts without masked_select",
    proof="tests/faults/test_accuracy_without_waiting.py::test_counting_does_not_cut_the_graph",
    tested=("0.8.1", "0.9.0"),
)


def compute_accuracy_single_step(
    pred_ids: torch.Tensor,
    target_ids: torch.Tensor,
    loss_mask: torch.Tensor | None,
    prev_correct: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Upstream's counts of one position.

    Args:
        pred_ids, target_ids: [1, tokens] int64.
        loss_mask: [1, tokens], the tokens that are judged; None: all.
        prev_correct: [1, tokens] bool, drafts right so far; changed in place. None: all.

    Returns:
        full_correct, full_total, cond_correct, cond_total: float32 scalars.
    """
    import torch

    correct = pred_ids == target_ids
    everything = torch.tensor(correct.numel(), dtype=torch.float, device=correct.device)
    cond_total = everything.clone()  # whoever adds to one total leaves the other
    if prev_correct is not None:
        cond_total = prev_correct.sum().float()
        correct = torch.logical_and(prev_correct, correct, out=prev_correct)
    full_total = everything
    if loss_mask is not None:
        judged = loss_mask.to(torch.bool)
        correct = torch.logical_and(correct, judged)
        full_total = judged.sum().float()
    correct_sum = correct.float().sum()
    return correct_sum, full_total, correct_sum.clone(), cond_total


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    return {_COUNT: compute_accuracy_single_step}
