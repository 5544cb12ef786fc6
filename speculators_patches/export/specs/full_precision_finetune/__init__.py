"""A drafter that is fine-tuned trains in float32."""

from speculators_patches.export.edits import argument
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="full_precision_finetune",
    related="#765 (closed, 2026-07-10: float32 parameters, which fresh drafters have since)",
    steps=(
        Step(
            slug="float32-finetune",
            subject="fix(train): fine-tune --from-pretrained drafters in float32",
            problem="""
                Master weights are meant to be float32: fresh drafters are, and the help text of
                `--hidden-states-dtype` says so. Checkpoints are written in bfloat16, though, and
                `--from-pretrained` trains a drafter in the precision its file has. An update below
                half a bfloat16 step (0.2 % of the weight) is then rounded away: at usual learning
                rates norms near 1.0 never move, and the optimizer's moments are bfloat16 as well.
                """,
            fix="""
                Ask `from_pretrained` for float32 at both places where `build_draft_model` loads
                trained weights. The forward pass runs under autocast as before, and checkpoints are
                still written in bfloat16. `--dry-run` casts to `--hidden-states-dtype` after this,
                so what it saves does not change; a config-only directory was float32 already.
                """,
            risk="""
                Fine-tuning now learns what was rounded away before, so losses differ from those of
                earlier runs. Memory: the trained weights, their gradients and moments take twice
                the bytes, as they do for a fresh drafter; frozen embeddings and heads are cast too.
                """,
            reproduction="reproduce.py",
            files={
                "train/cli.py": tuple(
                    argument(
                        "build_draft_model",
                        "model_class.from_pretrained",
                        "# Master weights are float32, whatever the checkpoint was saved in.\n"
                        "dtype=torch.float32",
                        after="verifier",
                        nth=nth,
                    )
                    for nth in range(2)
                )
            },
            tests={"tests/unit/train/test_finetune_precision.py": "test_finetune_precision.py"},
            differs="the overlay casts what `build_draft_model` returns",
        ),
    ),
)
