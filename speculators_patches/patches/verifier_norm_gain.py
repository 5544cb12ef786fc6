"""The teacher's final norm has the verifier's own gain.

The families that store a norm's weight as its distance from 1 (Gemma 1 to 3, Qwen 3.5) multiply by
1 + w. Upstream's EAGLE-3 and P-EAGLE drafters take the norm class of the draft layer, which
multiplies by w, and give it the verifier's weights as they are: the teacher of such a verifier is
another distribution than the one that vLLM serves. Since 0.9 DFlash and DSpark take the right
class, by the list of families below; Gemma 4 stores the gain itself and is right either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_LOAD = "speculators.model:DraftVocabMixin.load_verifier_weights"

PATCH = Patch(
    name="verifier_norm_gain",
    defect="EAGLE-3 and P-EAGLE targets for verifiers whose norms multiply by 1 + w (Gemma 1 to 3, "
    "Qwen 3.5) are made with w.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.model",
            "DraftVocabMixin.load_verifier_weights",
            fingerprints={">=0.8.1,<0.9.1": "1d7670ffb29ef7cf"},
        ),
    ),
    upstream="no issue found for EAGLE-3; DFlash has the cure (resolve_verifier_norm_class)",
    fixed_in=None,
    remove_when="every drafter kind of upstream takes resolve_verifier_norm_class",
    proof="tests/faults/test_softcap_targets.py::test_targets_are_what_the_verifier_serves",
    changes_learning=True,
    tested=("0.8.1", "0.9.0"),
)

# model_type (of the text part) of the verifiers that store a norm's weight as its distance from 1.
FAMILIES = frozenset(
    ("gemma", "gemma2", "gemma3", "gemma3_text", "recurrent_gemma", "qwen3_5", "qwen3_5_text")
)

_load_verifier_weights: Any = None


def load_verifier_weights(self: Any) -> None:
    """Upstream's, then the gain 1 + w where the verifier's family means that by w."""
    _load_verifier_weights(self)
    norm = getattr(self, "verifier_norm", None)
    known = getattr(getattr(self, "config", None), "speculators_config", None)
    name = getattr(getattr(known, "verifier", None), "name_or_path", None)
    if norm is None or name is None:
        return
    import torch
    from transformers import AutoConfig
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    config = AutoConfig.from_pretrained(name)
    config = getattr(config, "text_config", None) or config
    # Gemma3RMSNorm multiplies by 1 + w itself.
    if config.model_type in FAMILIES and not isinstance(norm, Gemma3RMSNorm):
        with torch.no_grad():
            norm.weight.add_(1.0)


def replacements(originals: Mapping[str, object]) -> Mapping[str, object]:
    """See `registry`."""
    global _load_verifier_weights
    _load_verifier_weights = originals[_LOAD]
    return {_LOAD: load_verifier_weights}
