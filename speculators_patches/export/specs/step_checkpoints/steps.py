"""The four steps, each small enough to be reviewed by itself."""

from speculators_patches.export import code
from speculators_patches.export.edits import (
    argument,
    condition,
    expression,
    field,
    flag,
    imports,
    insert,
    merge_ifs,
    parameter,
    statement,
    text,
    wrap,
)
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Step

_SAVE = "step_checkpoints/code_checkpointer.py"
_TRAIN = "step_checkpoints/code_trainer.py"
_STOP = "step_checkpoints/code_graceful_shutdown.py"
_FOLDER = "self.path / str(epoch)"

PRECISION = Step(
    slug="full-precision-state",
    subject="fix(train): save trained weights and moments in the precision they have",
    problem="""
        Checkpoints are written in bfloat16: float32 master weights, both moments of the optimizer
        and its step counter lose 16 bits each time. A resumed run is another run: on an H100 at
        real size its first loss was 3.3542 for 3.3493, and weights differed by 1.5e-3 after 20
        steps. A step counter above 256 is not a whole number in bfloat16.
        """,
    fix="""
        Optimizer state is saved as it is. The weights that train are saved beside
        `model.safetensors` as `trained_weights.pt` in their own precision, and take the place of
        the bfloat16 ones when a run resumes. `model.safetensors` and `config.json`, which vLLM
        loads, do not change; vLLM looks for `*.safetensors`, so it does not see the new file.
        Checkpoints without it load as before.
        """,
    risk="""
        Bytes per checkpoint: 8 instead of 4 for the moments of each trained weight and 4 more for
        the weight itself; frozen embeddings and heads are not in the new file. The sharded
        checkpointer gathers full tensors as before and rank 0 writes them; a test runs it on two
        ranks with gloo on a CPU. It has not been run with NCCL on several GPUs.
        """,
    reproduction="reproduce_precision.py",
    files={
        "train/checkpointer.py": (
            insert(
                code.definition(_SAVE, "trained_weights_path"),
                after="BaseCheckpointer.scheduler_path",
            ),
            insert(
                code.definition(_SAVE, "_load_trained_weights"),
                after="BaseCheckpointer.trained_weights_path",
            ),
            insert(code.definition(_SAVE, "_trained_weights"), before="convert_float_dtype"),
            # one process
            statement(
                "SingleGPUCheckpointer.load_model_state_dict",
                Match("assign", "full_state_dict", nth=1),
                "full_state_dict.update(self._load_trained_weights(device))",
                where="after",
            ),
            statement(
                "SingleGPUCheckpointer.save_checkpoint",
                Match("call", "patch_config_dtype"),
                code.inside(_SAVE, "save_trained"),
                where="after",
            ),
            statement(
                "SingleGPUCheckpointer.save_checkpoint",
                Match("assign", "state_dicts"),
                "state_dicts = [opt.state_dict() for opt in optimizers]",
                where="instead",
            ),
            # sharded
            statement(
                "DistributedCheckpointer.load_model_state_dict",
                Match("assign", "full_state_dict", nth=1),
                'full_state_dict.update(self._load_trained_weights("cpu"))',
                where="after",
            ),
            statement(
                "DistributedCheckpointer.save_checkpoint",
                Match("assign", "model_state_dict", nth=1),
                code.inside(_SAVE, "gathered_trained"),
                where="before",
            ),
            statement(
                "DistributedCheckpointer.save_checkpoint",
                Match("assign", "optimizer_state_dict", nth=1),
                "",
                where="instead",
            ),
            statement(
                "DistributedCheckpointer.save_checkpoint",
                Match("call", "patch_config_dtype"),
                "torch.save(trained, self.trained_weights_path(epoch))",
                where="after",
            ),
        )
    },
    tests={"tests/unit/train/test_resume_precision.py": "test_precision.py"},
    related="""
        #899 (open, 2026-08-03) saves the optimizer's state without a cast, as the first half of
        this does, and would make it smaller; it leaves the weights in bfloat16, and those alone
        make a resumed run another one. #1048 (open, 2026-08-27): with a scheduler, a resume on
        several ranks fails while the scheduler is made, before and after this change; #1049 (open,
        2026-08-27) mends it, #900 (open, 2026-08-03) does too and also seeds a scheduler whose
        state is missing. #1026 (open, 2026-08-21, for #1027) adds random states, which a run that
        draws random numbers needs for resuming bit for bit. None of that is done here.
        """,
    differs="the overlay stores nothing but what trains, with random states and the data cursor",
)

ATOMIC = Step(
    slug="atomic-publish",
    subject="fix(train): publish a checkpoint in one step",
    problem="""
        A checkpoint is four or five separate writes into `<save path>/<epoch>/`, and a save in the
        middle of an epoch rewrites the folder in place. Killed in between, the resume fails on a
        torn optimizer file, or, if `training_state.json` was not there yet, takes a part of an
        epoch for the whole of it: a run of one epoch then ends as done without having trained the
        rest. The copy from before is gone in either case.
        """,
    fix="""
        `BaseCheckpointer.publishing(epoch)` is a context in which that epoch's paths lead to a
        hidden folder. When the block ends, its files are flushed to the disk and it is renamed to
        its name; an older folder of that name is moved aside first and removed after. What an
        aborted save leaves is put right when the next checkpointer is made: the older folder moves
        back if it is the only one. An exception inside the block leaves everything as it was.
        """,
    risk="""
        While it is written a checkpoint takes its space a second time, also where one of that name
        was there. Only rank 0 renames, with a barrier behind it; the path must be the same file
        system for the folder and its parent, which it is by construction. Between the two renames
        no folder of that name exists for a moment; a reader can miss it, a resume cannot.
        """,
    reproduction="reproduce_atomic.py",
    files={
        "train/checkpointer.py": (
            imports("import os", "from contextlib import contextmanager"),
            statement(
                "BaseCheckpointer.__init__",
                Match("assign", "self.path"),
                code.inside(_SAVE, "start_clean"),
                where="after",
            ),
            insert(code.definition(_SAVE, "folder"), after="BaseCheckpointer.__init__"),
            insert(code.definition(_SAVE, "publishing"), after="BaseCheckpointer.folder"),
            insert(code.definition(_SAVE, "_publish"), after="BaseCheckpointer.publishing"),
            insert(
                code.definition(_SAVE, "_clean_up_aborted_saves"),
                after="BaseCheckpointer._publish",
            ),
            insert(code.definition(_SAVE, "_flush"), before="convert_float_dtype"),
            *(
                expression(f"BaseCheckpointer.{method}", _FOLDER, "self.folder(epoch)", count=1)
                for method in (
                    "model_path",
                    "optimizer_path",
                    "scheduler_path",
                    "trained_weights_path",
                    "_copy_train_command",
                )
            ),
            *(
                expression(f"{cls}.save_checkpoint", _FOLDER, "self.folder(epoch)", count=2)
                for cls in ("SingleGPUCheckpointer", "DistributedCheckpointer")
            ),
        ),
        "train/trainer.py": (
            expression(
                "Trainer._training_state_path",
                "self.checkpointer.path / str(epoch)",
                "self.checkpointer.folder(epoch)",
            ),
            statement(
                "Trainer.maybe_save_checkpoint",
                Match("call", "self._save_training_state"),
                "",
                where="instead",
            ),
            wrap(
                "Trainer.maybe_save_checkpoint",
                Match("call", "self.checkpointer.save_checkpoint"),
                Match("if", "self.schedulers"),
                "with self.checkpointer.publishing(epoch):",
                tail=code.inside(_TRAIN, "state_with_the_rest"),
            ),
            merge_ifs(
                "Trainer.maybe_save_checkpoint", Match("if", "isinstance(epoch, int)", nth=1)
            ),
            wrap(
                "Trainer.maybe_update_best",
                Match("call", "self.checkpointer.save_checkpoint"),
                Match("if", "self.schedulers"),
                "with self.checkpointer.publishing(epoch):",
            ),
        ),
    },
    tests={"tests/unit/train/test_atomic_checkpoint.py": "test_atomic.py"},
    related="""
        #739 (open, 2026-07-08) marks complete checkpoints, so that a resume passes a torn one over.
        Here a torn one never has its name, and the one from before is kept, so there is something
        to resume from also in the first epoch. Where #739 is merged first, its marker is to be
        written inside the same block.
        """,
    differs="the overlay's own checkpoints have a manifest with checksums, and are written in the "
    "background",
)

CADENCE = Step(
    slug="step-cadence",
    subject="feat(train): save a checkpoint every N optimizer steps",
    problem="""
        Checkpoints fall on epoch ends and fractions of an epoch. With `--save-best` fractions are
        ignored and nothing is saved between two validations, so a run of one epoch, 11 hours on one
        machine, has no checkpoint until it is over.
        """,
    fix="""
        `--checkpoint-steps N` saves into the epoch's folder at every N-th optimizer step, with the
        position in the epoch, so that a resume skips what was trained on. It works beside
        `--checkpoint-freq` and `--save-best`.
        """,
    risk="""
        Off by default. Each save replaces its epoch's folder and takes the time of one checkpoint.
        Epochs that would have had none get one: with `--checkpoint-freq` above 1 those in between,
        whose folders stay, and with `--save-best` those that are not better, whose folders go when
        a better one comes. So it can cost the space of a checkpoint per epoch. Such a folder holds
        the last position in the middle of its epoch, from which a resume repeats the end.
        """,
    reproduction="reproduce_cadence.py",
    files={
        "train/trainer.py": (
            field("TrainerConfig", "max_steps", "checkpoint_steps: int | None = None"),
            parameter(
                "Trainer.maybe_save_checkpoint",
                "force: bool = False",
                after="local_step",
                inline=True,
            ),
            condition(
                "Trainer.maybe_save_checkpoint",
                Match("if", "epoch != 'interrupted' and..."),
                "not force",
            ),
            statement(
                "Trainer.train_epoch",
                Match(
                    "if",
                    "self.config.max_steps is not None and self.global_step >= "
                    "self.config.max_steps",
                ),
                code.inside(_TRAIN, "every_so_many_steps"),
                where="before",
            ),
        ),
        "train/config/schema.py": (
            field("TrainerArgs", "max_steps", code.inside(_TRAIN, "field_of_the_schema")),
        ),
        "train/cli.py": (
            argument(
                "main",
                "TrainerConfig",
                "checkpoint_steps=args.checkpoint_steps",
                after="max_steps",
            ),
        ),
    },
    beside={
        "docs/cli/train.md": (
            flag(
                "--checkpoint-freq",
                then="**`--checkpoint-steps`** (int, default: `None`) Also save a checkpoint every "
                "N optimizer steps, into the folder of the current epoch. Works beside "
                "`--checkpoint-freq` and `--save-best`.",
            ),
        )
    },
    tests={"tests/unit/train/test_checkpoint_steps.py": "test_cadence.py"},
    differs="the overlay also saves by minutes, 10 unless set, and keeps the newest three",
)

SIGNALS = Step(
    slug="resumable-interrupt",
    subject="fix(train): make an interrupted run resumable, and tell by its exit code",
    problem="""
        Ctrl+C, SIGTERM and a scheduler's time limit save an `interrupted` folder without the
        position in the epoch. It is not found by a resume, and renamed as the log advises it counts
        as the end of an epoch, so the rest of the epoch is never trained. The process exits 0, so a
        scheduler takes the run for finished. The handler raises wherever the program is: between
        the steps of two optimizers the saved weights belong to two steps. SIGHUP saves nothing.
        """,
    fix="""
        The update (optimizers, schedulers, position) is a section in which a signal is noted and
        raised behind it. After it the trainer knows how many batches of the epoch are trained, and
        an interrupt saves them as a checkpoint in the middle of the epoch, which a resume finds.
        SIGHUP is handled as SIGTERM is, unless it is ignored (nohup). `train` exits with 128 plus
        the signal's number.
        """,
    risk="""
        A signal waits for at most one optimizer step; a hang inside it (a collective that never
        returns) is ended by a second signal only when the handlers are restored, so by SIGKILL.

        Each rank defers for itself. Ranks that get the signal on two sides of an update stop one
        step apart, as they could before; under DDP rank 0 alone saves, but with `--fsdp-shard` the
        shards in that checkpoint would be of two steps. Agreeing on a step needs a collective,
        which this change leaves out.

        An `interrupted` folder is still written where training has not made a step. Scripts that
        took exit code 0 for an interrupted run see 130, 143 or 129; under `torchrun`, which exits
        with a code of its own when a worker fails, they see another one than 0. A change that puts
        a condition around the two step calls in `train_epoch` has to put it around `_update`
        instead.
        """,
    reproduction="reproduce_signals.py",
    files={
        "train/graceful_shutdown.py": (
            imports("from contextlib import contextmanager"),
            statement(
                "GracefulShutdownHandler.__init__",
                Match("assign", "self._installed"),
                code.inside(_STOP, "state"),
                where="after",
            ),
            text(
                "GracefulShutdownHandler.install",
                "SIGINT and SIGTERM",
                "SIGINT, SIGTERM and SIGHUP",
            ),
            statement(
                "GracefulShutdownHandler.install",
                Match("assign", "self._installed"),
                code.inside(_STOP, "install_hang_up"),
                where="before",
            ),
            statement(
                "GracefulShutdownHandler.restore",
                Match("assign", "self._installed"),
                code.inside(_STOP, "restore_hang_up"),
                where="before",
            ),
            statement(
                "GracefulShutdownHandler._handler",
                Match("raise", "TrainingInterruptedError"),
                code.inside(_STOP, "later"),
                where="before",
            ),
            insert(code.definition(_STOP, "deferred"), before="GracefulShutdownHandler.timeout"),
            insert(code.definition(_STOP, "deferred_interrupts"), before="with_graceful_shutdown"),
            statement(
                "with_graceful_shutdown.decorator.wrapper",
                Match("call", "handler.install"),
                "self.shutdown_handler = handler",
                where="before",
            ),
            statement(
                "with_graceful_shutdown.decorator.wrapper",
                Match("call", "logger.info"),
                code.inside(_STOP, "where_it_is"),
                where="instead",
            ),
        ),
        "train/trainer.py": (
            imports("from speculators.train.graceful_shutdown import deferred_interrupts"),
            insert(code.definition(_TRAIN, "_update"), after="Trainer._schedulers_step"),
            statement(
                "Trainer.train_epoch", Match("call", "self._optimizers_step"), "", where="instead"
            ),
            statement(
                "Trainer.train_epoch",
                Match("call", "self._schedulers_step"),
                "self._update(epoch, local_step)",
                where="instead",
            ),
            statement(
                "Trainer.run_training",
                Match("call", "self.maybe_update_best"),
                code.inside(_TRAIN, "epoch_is_done"),
                where="after",
            ),
            statement(
                "Trainer.maybe_save_checkpoint",
                Match("if", "not force and..."),
                code.inside(_TRAIN, "the_position"),
                where="before",
            ),
        ),
        "train/cli.py": (
            statement(
                "main",
                Match("call", "trainer.run_training"),
                code.inside(_TRAIN, "which_signal"),
                where="after",
            ),
            statement(
                "main",
                Match("call", "maybe_destroy_distributed", nth=1),
                code.inside(_TRAIN, "tell"),
                where="after",
            ),
        ),
    },
    tests={"tests/unit/train/test_resumable_interrupt.py": "test_signals.py"},
    differs="the overlay saves on exceptions too, and protects data workers from group signals",
)
