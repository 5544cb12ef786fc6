"""A drafter that is fine-tuned trains in float32, as a fresh one does.

Upstream keeps master weights in float32 (#765, and the help text of --hidden-states-dtype says so),
and writes checkpoints in bfloat16. `--from-pretrained` loads such a checkpoint in the precision it
was written in and trains it there: updates smaller than half a bfloat16 step (0.2 % of the weight)
are lost, norms near 1.0 stop moving, and the optimizer's moments are bfloat16 too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_TARGET = "speculators.train.cli:build_draft_model"

PATCH = Patch(
    name="full_precision_finetune",
    defect="--from-pretrained trains the weights of a bfloat16 drafter in bfloat16.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.cli",
            "build_draft_model",
            fingerprints={"==0.8.1": "dca5736078d28534", "==0.9.0": "dca5736078d28534"},
        ),
    ),
    upstream="no issue found; #765 made fresh drafters float32",
    fixed_in=None,
    remove_when="upstream's --from-pretrained loads drafters in float32",
    proof="tests/faults/test_full_precision_finetune.py::test_small_updates_reach_the_weights",
    changes_learning=True,
    tested=("0.8.1", "0.9.0"),
)

_build_draft_model: Any = None


def build_draft_model(*args: Any, **kwargs: Any) -> Any:
    """Upstream's function; the drafter it returns holds every parameter in float32."""
    return _build_draft_model(*args, **kwargs).float()


def replacements(originals: Mapping[str, object]) -> Mapping[str, object]:
    """See `registry`."""
    global _build_draft_model
    _build_draft_model = originals[_TARGET]
    return {_TARGET: build_draft_model}
