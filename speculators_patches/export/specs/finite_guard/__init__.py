"""A NaN or an infinity reaches neither a weight nor the name "best"."""

from speculators_patches.export import code
from speculators_patches.export.edits import imports, insert, noqa, statement, wrap
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "finite_guard/code_trainer.py"

SPEC = Spec(
    name="finite_guard",
    related="#1120 (RFC, open, 2026-09-15: non-finite losses and the final save)",
    steps=(
        Step(
            slug="skip-non-finite-steps",
            subject="fix(train): skip steps whose loss or gradient is not finite",
            problem="""
                One NaN in one cached hidden state makes the loss NaN, then the gradient, and with
                the optimizer step every weight. Training goes on to the end with exit code 0 and
                saves what is left. A NaN validation loss then counts as the best one, because
                `nan >= best` is false, and `--save-best` deletes the last good checkpoint.
                """,
            fix="""
                Look at the loss and at the gradient's total norm, which `clip_grad_norm_` returns
                anyway, after each backward pass. If one is not finite on any rank, no rank steps.
                After three such steps in a row, counted over the ends of epochs, the run ends with
                an error, with the weights from before them. Clipping by an infinite norm leaves
                gradients of exactly 0, so the norm is taken from before clipping. A validation loss
                that is not finite is never best.
                """,
            risk="""
                Reading one number back waits for the device once a step, as a logged step does
                (`--log-freq` is 1 by default). A run that stays finite takes the same steps as
                before. Three in a row is a constant; a schedule that diverges on purpose for longer
                would have to change it.
                """,
            reproduction="reproduce.py",
            files={
                "train/trainer.py": (
                    imports("import math"),
                    insert(code.inside(_CODE, "constant"), before="_should_sync_recovery"),
                    insert(code.definition(_CODE, "_is_finite"), after="_should_sync_recovery"),
                    noqa("Trainer.train_epoch", "C901"),
                    statement(
                        "Trainer.__init__",
                        Match("assign", "self.config"),
                        code.inside(_CODE, "count"),
                        where="after",
                    ),
                    statement(
                        "Trainer.train_epoch",
                        Match("call", "torch.nn.utils.clip_grad_norm_"),
                        code.inside(_CODE, "clip"),
                        where="instead",
                    ),
                    statement(
                        "Trainer.train_epoch",
                        Match("call", "timer.mark", nth=5),
                        code.inside(_CODE, "judge"),
                        where="after",
                    ),
                    wrap(
                        "Trainer.train_epoch",
                        Match("call", "self._optimizers_step"),
                        Match("call", "self._optimizers_step"),
                        "if finite:",
                    ),
                    wrap(
                        "Trainer.train_epoch",
                        Match("call", "self._schedulers_step"),
                        Match("call", "self._schedulers_step"),
                        "if finite:",
                    ),
                    statement(
                        "Trainer.maybe_update_best",
                        Match("if", "val_metrics['loss_epoch'] >= self.best_val_loss"),
                        code.inside(_CODE, "never_best"),
                        where="before",
                    ),
                )
            },
            tests={"tests/unit/train/test_non_finite_steps.py": "test_non_finite_steps.py"},
            differs="the overlay also checks cached samples and what is about to be saved",
        ),
    ),
)
