"""A drafter that is fine-tuned learns from the verifier named on the command line.

`--from-pretrained` of a speculators checkpoint keeps the verifier that its config names, and
upstream makes the targets with that one's final norm and head, whatever `--verifier-name-or-path`
says: a drafter made for a vanilla body and fine-tuned on an abliterated body's hidden states is
taught with the vanilla body's head (and needs its files). Here the named one's norm and head are
loaded in their place, and the checkpoints name it. The drafter's own embedding and head stay.

How much it matters depends on what the two heads share; in the miniature, whose abliteration edits
the tied embedding, the total variation between both teachers is 4e-5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_BUILD = "speculators.train.cli:build_draft_model"

PATCH = Patch(
    name="named_verifier",
    defect="--from-pretrained takes the targets' head and norm from the verifier in the drafter's "
    "config, not from --verifier-name-or-path.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.cli",
            "build_draft_model",
            fingerprints={"==0.8.1": "dca5736078d28534", "==0.9.0": "dca5736078d28534"},
        ),
        # Loads head and norm anew each time; embedding and drafter's head only if they are unset.
        Target(
            "speculators.model",
            "DraftVocabMixin.load_verifier_weights",
            fingerprints={">=0.8.1,<0.9.1": "1d7670ffb29ef7cf"},
            observed=True,
        ),
    ),
    upstream="no issue found; the help text says that it is ignored for speculators checkpoints",
    fixed_in=None,
    remove_when="upstream's --from-pretrained follows --verifier-name-or-path",
    proof="tests/faults/test_named_verifier.py::test_the_named_verifier_teaches",
    changes_learning=True,
    tested=("0.8.1", "0.9.0"),
)

_build_draft_model: Any = None


def build_draft_model(args: Any, *rest: Any, **kwargs: Any) -> Any:
    """Upstream's function; the drafter it returns is taught by `args.verifier_name_or_path`."""
    model = _build_draft_model(args, *rest, **kwargs)
    named = getattr(args, "verifier_name_or_path", None)
    known = getattr(model.config, "speculators_config", None)
    if not (getattr(args, "from_pretrained", None) and named and known is not None):
        return model
    if known.verifier.name_or_path == named or not hasattr(model, "verifier_lm_head"):
        return model
    from speculators.config import VerifierConfig

    known.verifier = VerifierConfig.from_pretrained(named)
    model.load_verifier_weights()
    return model


def replacements(originals: Mapping[str, object]) -> Mapping[str, object]:
    """See `registry`."""
    global _build_draft_model
    _build_draft_model = originals[_BUILD]
    return {_BUILD: build_draft_model}
