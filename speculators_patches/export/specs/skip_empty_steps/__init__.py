"""A batch without a trainable token changes nothing; a run without data is no success."""

from speculators_patches.export import code
from speculators_patches.export.edits import insert, noqa, statement, wrap
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "skip_empty_steps/code_trainer.py"

SPEC = Spec(
    name="skip_empty_steps",
    related="#969 (merged, after 2026-08-27: introduced the zero-loss batch)",
    steps=(
        Step(
            slug="skip-empty-batches",
            subject="fix(train): do not step on batches without a trainable token",
            problem="""
                When every sample of a batch failed, the trainer runs on padding. Loss and gradients
                are exactly 0, but the optimizers step all the same: along their momentum, which
                Muon (the default) normalizes back to full length, with weight decay, and the
                schedule advances. A few hundred such batches move the weights about as far as as
                many real ones. Validation takes an empty batch in as loss 0, so a validation
                without any data is the best there ever was; and a run in which no sample could be
                had ends with exit code 0.
                """,
            fix="""
                Before the forward pass the ranks agree on whether any of them has a trainable
                token. If none has, neither optimizers nor schedules step. Everything else goes on
                as before: `global_step` counts the batch, so a resume skips the same ones, and
                checkpoints and `--max-steps` fall where they fell. In validation the metrics of an
                empty batch count as nothing instead of as 0. An epoch that trained on nothing and a
                validation that saw nothing raise, naming what to look at.
                """,
            risk="""
                In distributed runs one all-reduce of a single number a step, whose result is read
                back: the step waits for the device once, as it does where metrics are logged. One
                process looks at the mask on the CPU and waits for nothing. If only some
                ranks are empty nothing changes: they contribute a zero gradient, and the mean
                over ranks is smaller for it. Logged training metrics of an empty batch are still 0.
                A run that was "successful" without any data now fails.
                """,
            reproduction="reproduce.py",
            files={
                "train/trainer.py": (
                    insert(code.definition(_CODE, "_on_any_rank"), after="_all_reduce_metrics"),
                    noqa("Trainer.train_epoch", "C901"),
                    statement(
                        "Trainer.train_epoch",
                        Match("assign", "recovery"),
                        code.inside(_CODE, "count_trained"),
                        where="after",
                    ),
                    statement(
                        "Trainer.train_epoch",
                        Match("call", "timer.mark", nth=1),
                        code.inside(_CODE, "look_at_the_mask"),
                        where="before",
                    ),
                    wrap(
                        "Trainer.train_epoch",
                        Match("call", "self._optimizers_step"),
                        Match("call", "self._optimizers_step"),
                        "# Loss and gradients of an empty batch are 0; momentum and weight\n"
                        "# decay would move the weights all the same.\n"
                        "if trains:",
                    ),
                    wrap(
                        "Trainer.train_epoch",
                        Match("call", "self._schedulers_step"),
                        Match("call", "self._schedulers_step"),
                        "if trains:",
                    ),
                    statement(
                        "Trainer.train_epoch",
                        Match("for", "enumerate(train_loader, 1)"),
                        code.inside(_CODE, "trained_on_nothing"),
                        where="after",
                    ),
                    statement(
                        "Trainer.val_epoch",
                        Match("assign", "recovery"),
                        code.inside(_CODE, "count_validated"),
                        where="after",
                    ),
                    statement(
                        "Trainer.val_epoch",
                        Match("for", "metrics.items()"),
                        code.inside(_CODE, "validate_one"),
                        where="before",
                    ),
                    statement(
                        "Trainer.val_epoch",
                        Match("for", "metrics.items()"),
                        code.inside(_CODE, "accumulate"),
                        where="instead",
                    ),
                    statement(
                        "Trainer.val_epoch",
                        Match("assign", "val_metrics", nth=0),
                        code.inside(_CODE, "validated_nothing"),
                        where="before",
                    ),
                )
            },
            tests={"tests/unit/train/test_empty_batches.py": "test_empty_batches.py"},
            differs="the overlay also rescales the gradient where only some ranks are empty, and "
            "stops a run that loses more than 2 % of its samples",
        ),
    ),
)
