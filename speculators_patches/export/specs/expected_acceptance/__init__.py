"""Validation says what vLLM would accept of drafts drawn from the drafter's distribution."""

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

_CODE = "expected_acceptance/code_core.py"
_OURS = "patches.expected_acceptance"
_FORWARD = "Eagle3DraftModel.forward"

SPEC = Spec(
    name="expected_acceptance",
    related="#741 (merged, 2026-07-08: accepted length of DFlash from its accuracies)",
    steps=(
        Step(
            slug="val-expected-acceptance",
            subject="feat(eagle3): report expected acceptance in validation",
            problem="""
                Validation reports the loss and how often drafter and verifier agree on the best
                token. vLLM with `draft_sample_method: probabilistic` draws drafts from the
                drafter's distribution q and accepts token x with min(1, p(x) / q(x)); how much it
                accepts at a temperature follows from neither number. A drafter can gain on one and
                lose on the other, and which of two checkpoints serves better is found out only by
                serving both.
                """,
            fix="""
                For text that the verifier wrote itself, the sum over x of min(p(x), q(x)) is the
                mean of min(1, q(t) / p(t)) over the text's own tokens t, so validation data are
                enough, without sampling. With `--acceptance-temperature T` validation adds
                `expect_k`: the product of these ratios up to position k, averaged over drafts that
                lie in a reply, as vLLM counts acceptance by position. A token outside the draft
                vocabulary is never accepted.
                """,
            risk="""
                Off unless asked for; training steps are not touched. It holds for text sampled from
                the verifier at the given temperature (regenerated responses), not for other
                people's answers. p is the softmax over the draft vocabulary, as the targets are, so
                with a pruned one the estimate is slightly low. Validation keeps the logits of all
                positions of a batch for a moment: tokens times draft vocabulary times `ttt_steps`.
                """,
            reproduction="reproduce.py",
            files={
                "models/eagle3/metrics.py": (
                    insert(code.ours(_OURS, "expected_acceptance"), after="compute_metrics"),
                    insert(code.inside(_CODE, "chunk"), before="expected_acceptance"),
                    insert(code.ours(_OURS, "_log_prob_of_text"), after="expected_acceptance"),
                    insert(
                        code.ours("patches.accuracy_denominators", "consecutive"),
                        before="align_for_step",
                    ),
                ),
                "models/eagle3/core.py": (
                    imports(
                        "from speculators.models.eagle3.metrics import expected_acceptance",
                    ),
                    parameter(
                        _FORWARD,
                        "acceptance_temperature: float | None = None",
                        after="loss_config",
                    ),
                    statement(
                        _FORWARD,
                        Match("assign", "metrics"),
                        "step_logits = []",
                        where="after",
                    ),
                    statement(
                        _FORWARD,
                        Match("call", "metrics.update"),
                        code.inside(_CODE, "each_step"),
                        where="after",
                    ),
                    statement(
                        _FORWARD,
                        Match("assign", "metrics['loss_total']"),
                        code.inside(_CODE, "at_the_end"),
                        where="after",
                    ),
                    text(
                        "Eagle3DraftModel.get_trainer_kwargs",
                        "val_kwargs = {",
                        'val_kwargs = {\n            "acceptance_temperature": '
                        'kwargs.get("acceptance_temperature"),',
                    ),
                ),
                "train/config/schema.py": (
                    field("LossArgs", "ttt_step_loss_decay", code.inside(_CODE, "setting")),
                ),
            },
            beside={
                "docs/cli/train.md": (
                    flag(
                        "--ttt-step-loss-decay",
                        then="**`--acceptance-temperature`** (float, default: `None`) Validation "
                        "reports as `expect_k` how much vLLM would accept at this temperature of "
                        "drafts that are drawn from the drafter's distribution. Not reported if "
                        "unset.",
                    ),
                )
            },
            tests={"tests/unit/models/test_expected_acceptance.py": "test_expected_acceptance.py"},
            differs="the same functions, taken from the overlay, where the temperature is 0.7 "
            "unless set",
        ),
    ),
)
