"""Where the text goes on with a token that the drafter cannot say, it can be taught nothing."""

from speculators_patches.export import code
from speculators_patches.export.edits import (
    field,
    flag,
    imports,
    insert,
    parameter,
    statement,
    text,
)
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "unsayable_positions/code_core.py"
_FORWARD = "Eagle3DraftModel.forward"
_KWARGS = "Eagle3DraftModel.get_trainer_kwargs"

SPEC = Spec(
    name="unsayable_positions",
    steps=(
        Step(
            slug="mask-unsayable",
            subject="feat(eagle3): allow to train only on what the draft vocabulary can say",
            problem="""
                With a pruned draft vocabulary the targets are the verifier's distribution over that
                vocabulary alone, renormalised. Where most of the verifier's mass lies outside, what
                is left of it is taught at full weight, although no draft there can be right: such
                positions pull at the drafter as hard as those on which acceptance depends.
                """,
            fix="""
                `--mask-unsayable-positions` takes the positions out of the loss mask whose next
                token in the text is outside the draft vocabulary. Over text that the verifier wrote
                itself a position is kept as often as the verifier says something sayable there, so
                in expectation each counts with its share of mass inside the vocabulary, without
                logits over the whole one.
                """,
            risk="""
                Off unless asked for, because a gain in served acceptance has not been shown: this
                makes the experiment one flag. The loss and the accuracies, in training and in
                validation, are then those of the positions that are left, and not comparable with
                those of a run without the flag. Without a pruned vocabulary it does nothing.
                """,
            reproduction="reproduce.py",
            files={
                "models/eagle3/metrics.py": (
                    insert(
                        code.ours("patches.unsayable_positions", "sayable"),
                        before="align_for_step",
                    ),
                ),
                "models/eagle3/core.py": (
                    imports("from speculators.models.eagle3.metrics import sayable"),
                    parameter(
                        _FORWARD,
                        "mask_unsayable_positions: bool = False",
                        after="loss_config",
                    ),
                    statement(
                        _FORWARD,
                        Match("assign", "loss", nth=0),
                        code.inside(_CODE, "masked"),
                        where="under",
                    ),
                    statement(
                        _KWARGS,
                        Match("assign", "loss_config"),
                        'mask_unsayable = kwargs.get("mask_unsayable_positions", False)',
                        where="after",
                    ),
                    *(
                        text(
                            _KWARGS,
                            f"{kind}_kwargs = {{",
                            f"{kind}_kwargs = {{\n            "
                            '"mask_unsayable_positions": mask_unsayable,',
                        )
                        for kind in ("train", "val")
                    ),
                ),
                "train/config/schema.py": (
                    field("LossArgs", "ttt_step_loss_decay", code.inside(_CODE, "setting")),
                ),
            },
            beside={
                "docs/cli/train.md": (
                    flag(
                        "--t2d-path",
                        then="**`--mask-unsayable-positions`** (flag) EAGLE-3 with a reduced draft "
                        "vocabulary: leave positions out of the loss whose next token is outside "
                        "that vocabulary.",
                    ),
                )
            },
            tests={"tests/unit/models/test_mask_unsayable.py": "test_mask_unsayable.py"},
            differs="the same function `sayable`, taken from the overlay, whose acceptance counts "
            "every position all the same",
        ),
    ),
)
