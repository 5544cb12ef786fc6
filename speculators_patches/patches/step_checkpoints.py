"""Training can be stopped at any moment and goes on exactly where it was.

Upstream saves at epoch ends and fractions of them, in bf16, in place, without random generators,
and not at all when an exception or a hang-up ends the run. Here the trainer saves exact
checkpoints by steps and minutes in the background (`checkpointing`), on every way out it controls,
and resumes from the newest whole one at the batch where it stopped, bitwise equal to a run that was
never stopped. Upstream's folders are still made for vLLM, at epoch ends and for the best epoch.

0.7 has the same methods but no entrypoint in its wheel: its git `scripts/train.py` works through
`run`. 0.6 and older have no resume in the middle of an epoch to build on and are not covered.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import stops
from speculators_patches.registry import Patch, Target
from speculators_patches.step_checkpoints.settings import BadSetting, Settings, take

_TRAINER = "speculators.train.trainer:Trainer"
_RESOLVE = "speculators.train.config.schema:TrainConfig.resolve"
_SETUP = f"{_TRAINER}.setup_trainer"
_OPTIMIZER = f"{_TRAINER}.setup_optimizer"
_SCHEDULE = f"{_TRAINER}._schedulers_step"
_SAVE = f"{_TRAINER}.maybe_save_checkpoint"
_RUN = f"{_TRAINER}.run_training"
_ALL = ">=0.7,<0.9.1"

PATCH = Patch(
    name="step_checkpoints",
    defect="A run that is killed, interrupted or fails loses up to an epoch or its only "
    "checkpoint, and a resumed one is another run.",
    needed=SpecifierSet(">=0.7"),
    targets=(
        Target(
            "speculators.train.config.schema",
            "TrainConfig.resolve",
            fingerprints={">=0.7,<0.8.2": "6fc68c6978c44897", "==0.9.0": "01a327c2744f0263"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.setup_trainer",
            fingerprints={_ALL: "d43094f2baf7aa64"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.setup_optimizer",
            fingerprints={_ALL: "2b65a4c8c77cfd43"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer._schedulers_step",
            fingerprints={_ALL: "f90011e54303a839"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.maybe_save_checkpoint",
            fingerprints={_ALL: "f7f97ea65f4f6790"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.run_training",
            fingerprints={_ALL: "610106920a0c5803"},
        ),
        # Its loop over the loader, the step counter, and the order within a step.
        Target(
            "speculators.train.trainer",
            "Trainer.train_epoch",
            fingerprints={
                "==0.7.0.2": "c350c3512012ef39",
                "==0.8.1": "d515016800f38939",
                "==0.9.0": "461565dfd05aa163",
            },
            observed=True,
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.val_epoch",
            fingerprints={
                "==0.7.0.2": "2bc1c17b08fbec87",
                "==0.8.1": "74dc28163b0676b2",
                "==0.9.0": "7eb742f20743e683",
            },
            observed=True,
        ),
        # It slices the sampler once, in the epoch named current_epoch.
        Target(
            "speculators.train.trainer",
            "Trainer._prepare_resume_skip",
            fingerprints={_ALL: "ed615ce1e105ccd8"},
            observed=True,
        ),
        # Its effects are those of `folders.Folders.improve`.
        Target(
            "speculators.train.trainer",
            "Trainer.maybe_update_best",
            fingerprints={_ALL: "d16b74a17c0dc0ec"},
            observed=True,
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.__init__",
            fingerprints={_ALL: "4fb14f12c1fe2903"},
            observed=True,
        ),
        # Takes a name in place of an epoch, writes into that folder, and ends in a barrier.
        Target(
            "speculators.train.checkpointer",
            "SingleGPUCheckpointer.save_checkpoint",
            fingerprints={_ALL: "1304a0497edc90a0"},
            observed=True,
        ),
        Target(
            "speculators.train.checkpointer",
            "DistributedCheckpointer.save_checkpoint",
            fingerprints={_ALL: "d096fe277d3b7b09"},
            observed=True,
        ),
        Target(
            "speculators.train.checkpointer",
            "BaseCheckpointer.save_scheduler_state_dict",
            fingerprints={_ALL: "f059bc8044d0894a"},
            observed=True,
        ),
    ),
    upstream="https://github.com/vllm-project/speculators/pull/739",
    fixed_in=None,
    remove_when="upstream saves exact state by steps, atomically, and on the way down",
    proof="tests/faults/test_step_checkpoints.py::test_resumed_anywhere_it_is_the_same_run",
    tested=("0.7.0.2", "0.8.1", "0.9.0"),
)

logger = logging.getLogger("speculators")

_resolve: Any = None
_setup_trainer: Any = None
_setup_optimizer: Any = None
_schedulers_step: Any = None
_theirs: Mapping[str, Any] = {}
_settings: Settings | None = None  # from the command line; None: from the environment
_config: Any = None  # upstream's, from the same command line


def resolve(cls: Any, argv: list[str] | None = None) -> Any:
    """Upstream's, without our flags; they still appear in the recorded command."""
    global _settings, _config
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        _settings, theirs = take(words)
    except BadSetting as error:
        raise SystemExit(f"speculators_patches: {error}") from None
    config = _resolve(cls, theirs)
    config._argv = [sys.argv[0], *words]
    _config = config
    return config


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """A checkpoint that can't be used, or a run that was stopped: one line and exit code 1."""
    from speculators_patches.checkpointing.errors import CheckpointError
    from speculators_patches.step_checkpoints.epoch_folder import PublishFailed

    try:
        yield
    except stops.RunStopped as stop:
        raise SystemExit(f"speculators_patches: training stopped: {stop}") from stop
    except (CheckpointError, PublishFailed) as error:
        raise SystemExit(f"speculators_patches: {error}") from error


def setup_trainer(self: Any) -> None:
    """Upstream's, told to load nothing where step checkpoints will be restored.

    Of a run without them the newest complete epoch folder is taken; a torn one is passed over.
    """
    from speculators_patches.checkpointing import names, reading
    from speculators_patches.step_checkpoints import buckets, epoch_folder

    checkpointer = self.checkpointer
    save_path: Path = checkpointer.path
    records, newest = _seen_by_rank_0(
        self,
        lambda: (
            bool(reading.records(save_path / names.STORE)),
            epoch_folder.newest_complete(save_path),
        ),
    )
    self._step_records = records
    if self.resume_from_checkpoint and records:
        _start_at(checkpointer, None)
    elif self.resume_from_checkpoint:
        if checkpointer.previous_epoch not in (-1, newest):
            logger.warning(
                f"{checkpointer.prev_path} is not complete (upstream was killed while it "
                f"saved): passed over for {'nothing' if newest is None else newest}"
            )
        _start_at(checkpointer, newest)
        if newest is not None:
            _warn_of_taking_over(checkpointer.prev_path)
    _setup_trainer(self)
    buckets.keep_the_first(self)  # the drafter is wrapped next


def _seen_by_rank_0(trainer: Any, look: Callable[[], Any]) -> Any:
    """What `look()` finds on the disk, the same for all: network file systems lag behind."""
    found = [look() if trainer.rank == 0 else None]
    if trainer.is_distributed:
        import torch.distributed as dist

        dist.broadcast_object_list(found, src=0)
    return found[0]


def _warn_of_taking_over(folder: Path) -> None:
    from speculators_patches.step_checkpoints import epoch_folder

    logger.warning(
        f"taking over a run of plain upstream from {folder}: its weights and moments were stored "
        "in bf16 and without random state, so what follows is not exactly the run that was begun"
    )
    if late := epoch_folder.newer_than_its_state(folder):
        logger.warning(
            f"{folder / late} is newer than the {epoch_folder.STATE} beside it: upstream was "
            "killed while it saved, and weights, moments and position are of different steps"
        )


def _start_at(checkpointer: Any, epoch: int | None) -> None:
    checkpointer.previous_epoch = -1 if epoch is None else epoch
    checkpointer.prev_path = None if epoch is None else checkpointer.path / str(epoch)


def setup_optimizer(self: Any) -> None:
    """Upstream's, the last part of the set-up; then what was saved is put back."""
    from speculators_patches.step_checkpoints import buckets, epoch_folder
    from speculators_patches.step_checkpoints.run import Run

    buckets.as_upstream()
    _setup_optimizer(self)
    _check_save_best(self)
    try:
        settings = take([])[0] if _settings is None else _settings
    except BadSetting as error:
        raise SystemExit(f"speculators_patches: {error}") from None
    with _in_one_sentence():
        self._step_checkpoints = Run(
            self, settings, _config, continued=self._step_records and self.resume_from_checkpoint
        )
        if self.rank == 0:  # which holds the store's lock now: what lies there is nobody's
            epoch_folder.sweep(self.checkpointer.path)
        if self._step_records and not self.resume_from_checkpoint:
            self._step_checkpoints.begin_anew()


def _check_save_best(trainer: Any) -> None:
    """Upstream's --save-best would delete the step checkpoints."""
    cleanup = type(trainer.checkpointer).cleanup_keep_only_best
    if trainer.config.save_best and cleanup.__module__.startswith("speculators."):
        raise SystemExit(
            "speculators_patches: --save-best with step_checkpoints needs the patch "
            "save_best_scope, or upstream deletes the step checkpoints; do not skip it"
        )


def schedulers_step(self: Any) -> None:
    """Upstream's; after it a step's update is complete."""
    _schedulers_step(self)
    if _is_ours(self):
        self._step_checkpoints.update_done()


def maybe_save_checkpoint(self: Any, epoch: int | str, local_step: int = 0) -> None:
    """Called in the middle of an epoch by --checkpoint-freq below 1: a step checkpoint."""
    if _is_ours(self):
        self._step_checkpoints.request_save()
    else:
        _theirs[_SAVE](self, epoch, local_step)


def run_training(self: Any) -> None:
    """See `step_checkpoints.run.Run.train`."""
    if not _is_ours(self):
        logger.warning(
            f"{type(self).__name__} sets up its optimizers itself: its checkpoints are upstream's"
        )
        _theirs[_RUN](self)
        return
    with _in_one_sentence():
        self._step_checkpoints.train()


def _is_ours(trainer: Any) -> bool:
    """False for a trainer made without `setup_optimizer`: a subclass with one of its own."""
    return hasattr(trainer, "_step_checkpoints")


def export_checkpoint(checkpoint: Path, output: Path) -> None:
    """See `step_checkpoints.export.export`; what `checkpoints export` calls."""
    from speculators_patches.step_checkpoints.export import export

    export(checkpoint, output)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _resolve, _setup_trainer, _setup_optimizer, _schedulers_step, _settings, _config
    _settings = _config = None
    _resolve = originals[_RESOLVE]
    _setup_trainer, _setup_optimizer = originals[_SETUP], originals[_OPTIMIZER]
    _schedulers_step = originals[_SCHEDULE]
    global _theirs
    _theirs = originals
    return {
        _RESOLVE: resolve,
        _SETUP: setup_trainer,
        _OPTIMIZER: setup_optimizer,
        _SCHEDULE: schedulers_step,
        _SAVE: maybe_save_checkpoint,
        _RUN: run_training,
    }
