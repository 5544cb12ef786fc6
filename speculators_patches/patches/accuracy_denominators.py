"""A perfect drafter reads 1.0, and what vLLM would accept stands beside it.

At TTT step k a draft that starts at position i is judged at i + k. For k >= 1 upstream divides by
starts before the reply and by targets behind it, at which nothing can be correct: over 20-token
replies a perfect drafter reads 1.0 / .95 / .90. Here both denominators hold only drafts that lie in
the reply from start to target.

full_acc compares with the verifier's best token of the *pruned* vocabulary. New beside it:
`accept_k`, the share of drafts whose tokens 0..k all equal the text, in the full vocabulary; a
token that the drafter cannot say counts as wrong. For text that the verifier itself wrote this is
the per-position acceptance of vLLM: at T = 0 exactly, at T > 0 in expectation (a greedy draft x is
accepted with probability p(x), which is how often the text continues with x). On other text it is
a lower reading.

Only what is reported changes; losses and gradients do not. 0.6 has the defect in other source and
is not covered; 0.5 reported no such metrics from a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

_COMPUTE = "speculators.models.eagle3.metrics:compute_metrics"
_FORWARD = "speculators.models.eagle3.core:Eagle3DraftModel.forward"
_RANGE = ">=0.7,<0.9.1"

PATCH = Patch(
    name="accuracy_denominators",
    defect="full_acc_k and cond_acc_k are too low for k >= 1, the more the shorter the replies, "
    "and hold for the pruned vocabulary only.",
    needed=SpecifierSet(">=0.7"),
    targets=(
        Target(
            "speculators.models.eagle3.metrics",
            "compute_metrics",
            fingerprints={_RANGE: "1834faa7584a22c3"},
        ),
        Target(
            "speculators.models.eagle3.core",
            "Eagle3DraftModel.forward",
            fingerprints={_RANGE: "9f82fc01b71405ff"},
        ),
        # What is compared with what at each step, and what prev_correct holds afterwards.
        Target(
            "speculators.models.eagle3.metrics",
            "align_for_step",
            fingerprints={_RANGE: "b79d76c0dff5a1b6"},
            observed=True,
        ),
        Target(
            "speculators.models.metrics",
            "compute_accuracy_single_step",
            fingerprints={_RANGE: "d08bec6785c35396"},
            observed=True,
        ),
        Target(
            "speculators.models.eagle3.data",
            "shift_batch",
            fingerprints={_RANGE: "173b79692c74a0e5"},
            observed=True,
        ),
    ),
    upstream="https://github.com/vllm-project/speculators/pull/902",
    fixed_in=None,
    remove_when="#902 or #624 ships, corrects full_acc too, and acceptance over the full "
    "vocabulary is reported",
    proof="tests/faults/test_accuracy_denominators.py::test_a_perfect_drafter_reads_one",
    tested=("0.7.0.2", "0.8.1", "0.9.0"),
)

_compute_metrics: Any = None
_forward: Any = None


def consecutive(mask: torch.Tensor, length: int) -> torch.Tensor:
    """Where `length` positions in a row, this one first, are all set.

    Args:
        mask: [1, tokens], any dtype.
        length: at least 1.

    Returns:
        [1, tokens - length + 1] bool (empty where that is negative).
    """
    import torch

    mask = mask.to(torch.bool)
    width = max(mask.shape[1] - length + 1, 0)
    result = mask[:, :width]
    for shift in range(1, length):
        result = result & mask[:, shift : shift + width]
    return result


def compute_metrics(
    logits: torch.Tensor,
    targets: torch.Tensor,
    loss_mask: torch.Tensor | None,
    prev_correct: torch.Tensor | None,
    ttt_step: int,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Upstream's loss and metrics, with full_acc and cond_acc counted over drafts in the reply.

    Args:
        logits, targets: [1, tokens, draft vocabulary].
        loss_mask: [1, tokens] or None for all.
        prev_correct: [1, tokens] bool, the starts whose drafts were right so far; changed in place.
        ttt_step: k, from 0.
    """
    import torch

    if prev_correct is None:  # upstream's drafter always passes it
        return _compute_metrics(logits, targets, loss_mask, prev_correct, ttt_step, *args, **kwargs)
    mask = loss_mask if loss_mask is not None else torch.ones_like(prev_correct)
    judged = consecutive(mask, ttt_step + 1)
    width = judged.shape[1]
    before = (prev_correct[:, :width].to(torch.bool) & judged).sum()
    loss, metrics = _compute_metrics(
        logits, targets, loss_mask, prev_correct, ttt_step, *args, **kwargs
    )
    correct = (prev_correct[:, :width].to(torch.bool) & judged).sum().float()
    metrics[f"full_acc_{ttt_step}_sum"] = correct
    metrics[f"full_acc_{ttt_step}_total"] = judged.sum().float()
    metrics[f"cond_acc_{ttt_step}_sum"] = correct.clone()
    metrics[f"cond_acc_{ttt_step}_total"] = before.float()
    return loss, metrics


def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's, with `accept_k` added to the metrics where it is given a mask and the text."""
    output = _forward(self, *args, **kwargs)
    mask, ids = kwargs.get("loss_mask"), kwargs.get("input_ids")
    if mask is not None and ids is not None and isinstance(output, tuple) and len(output) == 3:
        output[2].update(acceptance(output[0], ids, mask, getattr(self, "d2t", None)))
    return output


def acceptance(
    draft_tokens: list[torch.Tensor],
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor,
    d2t: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Counts what a verifier that writes this very text would accept.

    After upstream's `shift_batch` the drafter at position i reads token i and drafts token i + 1;
    at step k it drafts token i + 1 + k. A draft counts if tokens i to i + 1 + k are all of a reply.

    Args:
        draft_tokens: one [1, tokens] int64 a step, in the draft vocabulary.
        input_ids: [1, tokens] int64, in the full vocabulary.
        loss_mask: [1, tokens], set on the reply.
        d2t: [draft vocabulary] int64, full id minus draft id; None where the two are the same.

    Returns:
        accept_{k}_sum and accept_{k}_total, float32 scalars, for every step.
    """
    import torch

    counts = {}
    accepted = torch.ones_like(input_ids, dtype=torch.bool)
    for step, drafted in enumerate(draft_tokens):
        full = drafted if d2t is None else drafted + d2t[drafted]
        counted = consecutive(loss_mask, step + 2)
        width = counted.shape[1]
        text = input_ids[:, step + 1 : step + 1 + width]
        accepted = accepted[:, :width] & (full[:, :width] == text)
        counts[f"accept_{step}_sum"] = (accepted & counted).sum().float()
        counts[f"accept_{step}_total"] = counted.sum().float()
    return counts


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _compute_metrics, _forward
    _compute_metrics, _forward = originals[_COMPUTE], originals[_FORWARD]
    return {_COMPUTE: compute_metrics, _FORWARD: forward}
