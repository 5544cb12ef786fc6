"""Validation says what vLLM would accept, for both of its ways of drafting.

Upstream validates with its loss and with how often drafter and verifier agree on the best token.
What counts in service at a temperature T is acceptance: with greedy drafts that is `accept_k` of
the patch accuracy_denominators; with drafts drawn from q it is, for text that the verifier itself
wrote at T, the mean of the product over depths of min(1, q(t) / p(t)) for its tokens t, since

    sum over x of q(x) min(1, p(x) / q(x)) = sum over x of p(x) min(1, q(x) / p(x)).

New in validation: `expect_k`, that mean up to position k (unconditional, as vLLM counts), over
drafts that lie in a reply from start to target. p is the softmax of upstream's targets at T: over
the draft vocabulary, so with a pruned one `expect_k` is slightly low; a token that the drafter
cannot say is never accepted. T is SPECULATORS_PATCHES_SERVE_TEMPERATURE (0.7); at 0 both ways are
one, and nothing is added.

Only what validation reports changes; training steps are not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches import stops
from speculators_patches.patches.accuracy_denominators import consecutive
from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

_COMPUTE = "speculators.models.eagle3.metrics:compute_metrics"
_FORWARD = "speculators.models.eagle3.core:Eagle3DraftModel.forward"
_RANGE = ">=0.7,<0.9.1"
SETTING = "SPECULATORS_PATCHES_SERVE_TEMPERATURE"
DEFAULT_TEMPERATURE = 0.7
# Positions whose distributions are held in float32 at once.
_CHUNK = 512
_DRAFTED, _TARGETS = "_drafted_{}", "_targets"

PATCH = Patch(
    name="expected_acceptance",
    defect="Validation does not say what vLLM would accept of drafts that are drawn from the "
    "drafter's distribution.",
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
        # It adds up whatever the forward pass reports.
        Target(
            "speculators.train.trainer",
            "Trainer.val_epoch",
            fingerprints={
                "==0.7.0.2": "2bc1c17b08fbec87",
                "==0.8.1": "74dc28163b0676b2",
                "==0.9.0": "7eb742f20743e683",
            },
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream reports expected acceptance in validation",
    proof="tests/faults/test_expected_acceptance.py::test_validation_says_what_would_be_accepted",
    tested=("0.7.0.2", "0.8.1", "0.9.0"),
)

_compute_metrics: Any = None
_forward: Any = None


def serve_temperature() -> float:
    """Of service. Raises RunStopped where the setting is no temperature."""
    return stops.setting(SETTING, DEFAULT_TEMPERATURE, 0.0, 100.0)


def compute_metrics(
    logits: torch.Tensor,
    targets: torch.Tensor,
    loss_mask: torch.Tensor | None,
    prev_correct: torch.Tensor | None,
    ttt_step: int,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Upstream's; in validation it hands the logits on to `forward`, which takes them out again."""
    import torch

    loss, metrics = _compute_metrics(
        logits, targets, loss_mask, prev_correct, ttt_step, *args, **kwargs
    )
    if not torch.is_grad_enabled():
        metrics[_DRAFTED.format(ttt_step)] = logits
        metrics[_TARGETS] = targets
    return loss, metrics


def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Upstream's, with `expect_k` in the metrics of a validation batch."""
    output = _forward(self, *args, **kwargs)
    if not (isinstance(output, tuple) and len(output) == 3 and _TARGETS in output[2]):
        return output
    metrics = output[2]
    targets = metrics.pop(_TARGETS)
    drafted = [metrics.pop(_DRAFTED.format(step)) for step in range(len(output[0]))]
    mask, ids, degrees = kwargs.get("loss_mask"), kwargs.get("input_ids"), serve_temperature()
    if mask is not None and ids is not None and degrees > 0:
        t2d = getattr(self, "t2d", None)
        metrics.update(
            expected_acceptance(drafted, targets, ids, mask, t2d=t2d, temperature=degrees)
        )
    return output


def expected_acceptance(
    drafted: list[torch.Tensor],
    targets: torch.Tensor,
    input_ids: torch.Tensor,
    loss_mask: torch.Tensor,
    *,
    t2d: torch.Tensor | None,
    temperature: float,
) -> dict[str, torch.Tensor]:
    """Counts of expected acceptance with drafts drawn from the drafter's softmax.

    At position i the drafter reads token i; at step k it drafts token i + 1 + k, whose
    distribution is the target at i + k.

    Args:
        drafted: one [1, tokens, draft vocabulary] of logits a step.
        targets: [1, tokens, draft vocabulary], the verifier's logits.
        input_ids: [1, tokens] int64, full vocabulary.
        loss_mask: [1, tokens], set on the reply.
        t2d: [vocabulary] bool, what the drafter can say; None: everything.
        temperature: of sampling, above 0.

    Returns:
        expect_{k}_sum and expect_{k}_total, float32 scalars, for every step.
    """
    import torch

    counts = {}
    tokens = input_ids.shape[1]
    log_prob = partial(_log_prob_of_text, t2d=t2d, temperature=temperature)
    log_p = log_prob(targets[0], input_ids[0], 1)
    standing = torch.zeros(tokens, device=input_ids.device)
    for step, logits in enumerate(drafted):
        counted = consecutive(loss_mask, step + 2)[0]
        width = counted.shape[0]
        log_q = log_prob(logits[0], input_ids[0], step + 1)
        # -inf where the drafter cannot say the token, whatever p says.
        wanted = log_p[step : step + len(log_q)].nan_to_num()
        ratio = torch.where(log_q.isinf(), log_q, log_q - wanted)
        standing = standing[: len(ratio)] + ratio.clamp(max=0.0)
        accepted = torch.where(counted, standing[:width].exp(), 0.0)
        counts[f"expect_{step}_sum"] = accepted.sum().float()
        counts[f"expect_{step}_total"] = counted.sum().float()
    return counts


def _log_prob_of_text(
    logits: torch.Tensor,
    ids: torch.Tensor,
    ahead: int,
    *,
    t2d: torch.Tensor | None,
    temperature: float,
) -> torch.Tensor:
    """Log-probability of token i + ``ahead`` by row i's softmax; [tokens - ahead]."""
    import torch

    text = ids[ahead:]
    sayable = torch.ones_like(text, dtype=torch.bool)
    if t2d is not None:
        known = t2d.to(torch.bool)
        sayable = known[text]
        text = (known.cumsum(0) - 1).clamp_min(0)[text]
    found = []
    for begin in range(0, len(text), _CHUNK):
        rows = logits[begin : begin + _CHUNK][: len(text) - begin].float() / temperature
        picked = text[begin : begin + _CHUNK, None]
        found.append(rows.log_softmax(-1).gather(-1, picked)[:, 0])
    values = torch.cat(found) if found else logits.new_zeros(0, dtype=torch.float32)
    return torch.where(sayable, values, torch.full_like(values, -torch.inf))


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _compute_metrics, _forward
    _compute_metrics, _forward = originals[_COMPUTE], originals[_FORWARD]
    return {_COMPUTE: compute_metrics, _FORWARD: forward}
