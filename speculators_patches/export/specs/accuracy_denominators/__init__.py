"""A perfect drafter reads 1.0 at every TTT step."""

from speculators_patches.export import code
from speculators_patches.export.edits import expression, insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "accuracy_denominators/code_metrics.py"

SPEC = Spec(
    name="accuracy_denominators",
    related="#902 (open, 2026-08-03: the conditional denominator), "
    "#624 (open, 2026-06-19: the same)",
    steps=(
        Step(
            slug="ttt-accuracy-denominators",
            subject="fix(metrics): count only drafts inside the reply in full_acc and cond_acc",
            problem="""
                At TTT step k a draft that starts at position i is judged at i + k. For k >= 1 both
                denominators hold drafts that cannot be right: starts whose target lies behind the
                reply (in `cond_acc`), and targets whose start lies before it (in `full_acc`), while
                the numerators need both ends inside. A drafter that is always right reads
                1.0 / .95 / .90 over replies of 20 tokens, and less over shorter ones, so the loss
                of accuracy with depth that the logs show is partly an artefact.
                """,
            fix="""
                Judge the drafts that lie inside the reply from start to target: positions i for
                which `loss_mask` is set at i, ..., i + k. That mask goes to
                `compute_accuracy_single_step`, whose conditional total counts `prev_correct` within
                the mask it was given.
                """,
            risk="""
                Reported `full_acc_k` and `cond_acc_k` rise for k >= 1 and are not comparable with
                those of earlier runs. Losses and gradients do not change.

                Both #902 and #624 count the conditional total of `compute_accuracy_single_step`
                within the mask, as this does too. With either of them merged first that part falls
                away here. What neither has is the mask: judged at the target only, drafts whose
                start lies before the reply stay in `full_acc`, and a drafter that is always right
                still reads below 1.
                """,
            reproduction="reproduce.py",
            files={
                "models/eagle3/metrics.py": (
                    insert(
                        code.ours("patches.accuracy_denominators", "consecutive"),
                        before="align_for_step",
                    ),
                    statement(
                        "compute_metrics",
                        Match("call", "compute_accuracy_single_step"),
                        code.inside(_CODE, "judged_drafts"),
                        where="before",
                    ),
                    expression(
                        "compute_metrics",
                        "compute_accuracy_single_step(pred_ids, target_ids, s_loss_mask, "
                        "s_prev_correct)",
                        "compute_accuracy_single_step(\n"
                        "        pred_ids, target_ids, judged, s_prev_correct\n    )",
                    ),
                ),
                "models/metrics.py": (
                    statement(
                        "compute_accuracy_single_step",
                        Match("assign", "cond_total", nth=1),
                        code.inside(_CODE, "conditional_total"),
                        where="instead",
                    ),
                ),
            },
            tests={"tests/unit/models/test_ttt_accuracy.py": "test_ttt_accuracy.py"},
            differs="the overlay also reports `accept_k`, acceptance over the full vocabulary",
        ),
    ),
)
