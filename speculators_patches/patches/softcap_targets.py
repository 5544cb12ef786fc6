"""The teacher is what the verifier really says: its logits go through its own final softcap.

Gemma 2 and Gemma 4 serve softmax(cap * tanh(logits / cap)), `final_logit_softcapping` being 30.
Upstream trains against softmax(logits): where logits are near the cap its teacher is far surer than
the verifier, and a drafter that learnt it perfectly would still be rejected (total variation 0.13
at top logits of 25, 0.24 at 30; simulated, temperature 1).

The cap is applied behind `verifier_lm_head`, which EAGLE-3, P-EAGLE and DFlash with its like make
their targets with (MTP has no use for it), and nowhere else: vLLM's EAGLE-3 heads
(`llama_eagle3.py` and its like in 0.32) serve the drafter's own logits without a cap, and so they
are trained without one. Same operations in the same precision as vLLM's `LogitsProcessor` and
transformers' Gemma, so that they round alike; compiled on a GPU the steps between stay in float32,
up to one step of bfloat16 away (0.125 at logits near 30).

Verifiers whose config has no cap are left alone. A hook on the module, not another module: state
dicts, FSDP and `torch.compile` see what they saw before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

# Below `load_verifier_weights`, which DFlash and its like override without calling the base class.
_LOAD = "speculators.model:DraftVocabMixin._load_verifier_weights"

PATCH = Patch(
    name="softcap_targets",
    defect="Targets ignore the verifier's final_logit_softcapping (Gemma 2, Gemma 4): the drafter "
    "learns a distribution that vLLM never serves.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.model",
            "DraftVocabMixin._load_verifier_weights",
            fingerprints={">=0.8.1,<0.9.1": "5b39166cfa943160"},
        ),
        # Where the targets come from: verifier_lm_head(verifier_norm(last hidden states)).
        Target(
            "speculators.models.eagle3.core",
            "Eagle3DraftModel.forward",
            fingerprints={">=0.7,<0.9.1": "9f82fc01b71405ff"},
            observed=True,
        ),
        Target(
            "speculators.model",
            "DraftVocabMixin._init_vocab",
            fingerprints={">=0.8.1,<0.9.1": "a314e9f2bc093f83"},
            observed=True,
        ),
    ),
    upstream="no issue found for EAGLE-3",
    fixed_in=None,
    remove_when="upstream applies the verifier's softcap to its targets",
    proof="tests/faults/test_softcap_targets.py::test_targets_are_what_the_verifier_serves",
    changes_learning=True,
    tested=("0.8.1", "0.9.0"),
)

_load_verifier_weights: Any = None


def softcap_of(config: Any) -> float | None:
    """The final softcap in a verifier's configuration, its `text_config` included; None without.

    Args:
        config: a transformers configuration.

    Raises:
        ValueError: the cap is not a positive number.
    """
    config = getattr(config, "text_config", None) or config
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is None:
        return None
    if isinstance(cap, bool) or not isinstance(cap, int | float) or not cap > 0:
        raise ValueError(
            f"The verifier's config has final_logit_softcapping={cap!r}, which is no cap: it must "
            "be a positive number or null."
        )
    return float(cap)


def cap_logits(module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    """Forward hook of `verifier_lm_head`: [..., vocabulary] logits, softcapped, same dtype."""
    cap = module.final_logit_softcapping
    return (logits / cap).tanh() * cap


def set_cap(head: Any, cap: float | None) -> None:
    """Makes `head` (an `nn.Linear`) cap what it returns; called again it replaces the cap."""
    hooked = hasattr(head, "final_logit_softcapping")
    if cap is None and not hooked:
        return
    if cap is None:
        head.final_logit_softcapping_hook.remove()
        del head.final_logit_softcapping, head.final_logit_softcapping_hook
        return
    head.final_logit_softcapping = cap
    if not hooked:
        head.final_logit_softcapping_hook = head.register_forward_hook(cap_logits)


def load_verifier_weights(self: Any, **overwrite: bool) -> None:
    """Upstream's, then the cap of the verifier that the weights came from."""
    _load_verifier_weights(self, **overwrite)
    known = getattr(getattr(self, "config", None), "speculators_config", None)
    name = getattr(getattr(known, "verifier", None), "name_or_path", None)
    head = getattr(self, "verifier_lm_head", None)
    if name is None or head is None:
        return
    from transformers import AutoConfig

    set_cap(head, softcap_of(AutoConfig.from_pretrained(name)))


def replacements(originals: Mapping[str, object]) -> Mapping[str, object]:
    """See `registry`."""
    global _load_verifier_weights
    _load_verifier_weights = originals[_LOAD]
    return {_LOAD: load_verifier_weights}
