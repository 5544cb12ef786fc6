"""Upstream's training, resumable at any step and saved on every way out.

One `Run` belongs to one upstream `Trainer`. It restores before the first batch, is told of every
step by `loaders.Watched`, takes the place of `Trainer.run_training`, and knows at every moment from
which cursor and which random generators training would have to go on.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from speculators_patches import finite, patience
from speculators_patches.checkpointing import names, rng
from speculators_patches.checkpointing.coordinator import Alone, Coordinator, Gloo, brief
from speculators_patches.checkpointing.cursor import Cursor
from speculators_patches.checkpointing.errors import CheckpointError, SaveFailedError, UnfitError
from speculators_patches.checkpointing.run import Found, RunCheckpoints
from speculators_patches.checkpointing.state import TrainingState
from speculators_patches.step_checkpoints import best, identity, noise, provenance, schedules
from speculators_patches.step_checkpoints.folders import Folders
from speculators_patches.step_checkpoints.loaders import Events, Watched
from speculators_patches.step_checkpoints.settings import Settings
from speculators_patches.step_checkpoints.stopping import Interrupted, Signals

logger = logging.getLogger("speculators")

# A rank may wait this long for the slowest one's batch: torch's limit for gloo, or longer where the
# producer is waited for longer.
_RANKS_TIMEOUT_S = 1800.0
# On the way down after an error the other ranks may be gone or stuck.
_LAST_CALL_S = 20.0
_WAIT_S = 120.0
_COMMIT_S = 600.0


class Run:
    """Checkpoints of `trainer`, which is set up but has not trained.

    Args:
        settings: from the command line.
        config: upstream's TrainConfig from the command line, if it came from there.
        continued: whether there are checkpoints in the save path to resume from.

    Raises:
        CheckpointError: not the same run, no whole checkpoint, or the folder is in use.
    """

    def __init__(
        self, trainer: Any, settings: Settings, config: Any = None, *, continued: bool
    ) -> None:
        self.trainer = trainer
        self.signals = Signals()
        self.cursor = Cursor(trainer.current_epoch, trainer._resume_local_step, trainer.global_step)
        self._requested = False
        self._updating = self._updated = False
        # The generators from which training goes on, where they are no longer those in use.
        self._generators: dict[str, Any] | None = None
        self._restore_generators_of: Found | None = None
        self._begun: Cursor | None = None  # where the newest save stands
        self._best_by = settings.best_by
        self._validated_at: int | None = None
        self._provenance = provenance.of(trainer, config)

        ranks: Coordinator = Alone()
        self._last_call: Coordinator | None = None
        if trainer.is_distributed:
            ranks = Gloo(max(_RANKS_TIMEOUT_S, patience.group_timeout().total_seconds()))
            self._last_call = Gloo(_LAST_CALL_S)
        self._noise, noise_fields = noise.install(trainer.train_loader)
        root = trainer.checkpointer.path / names.STORE
        try:
            self.saves = RunCheckpoints(
                root,
                TrainingState(
                    trainer.model, trainer.optimizers, trainer.schedulers, rank=ranks.rank
                ),
                [*identity.fields(trainer), *noise_fields],
                when=settings.when,
                keep=settings.keep,
                coordinator=ranks,
                check=self._refuse_nonfinite,
            )
        except OSError as error:
            raise CheckpointError(f"checkpoints can't be kept in {root}: {error}") from error
        self._folders = Folders(
            trainer, self.saves, self._assert_finite, commit_s=_COMMIT_S, best_by=settings.best_by
        )
        self._alone = ranks.world_size == 1
        if continued:
            self._resume(settings)
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(self._before_update)
        self._watch_loaders()

    # --- resuming ---------------------------------------------------------------------------

    def _resume(self, settings: Settings) -> None:
        try:
            found = self.saves.find(settings.despite)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
        if found is None:
            return
        trainer, cursor, meta = self.trainer, found.cursor, found.meta
        changed = identity.settings_changed(found.differences)
        self.saves.restore(found, settings="current" if changed else "saved")
        if changed:
            schedules.advance(trainer.schedulers, meta["schedule_steps"])
        for one in found.differences:
            logger.warning(f"resuming although {one}")
        if others := provenance.differences(meta, self._provenance):
            logger.warning(
                f"what follows may differ in its last bits from a run that was never stopped: "
                f"{'; '.join(others)}"
            )
        trainer.current_epoch = cursor.epoch
        trainer._resume_local_step = cursor.local_step if cursor.phase == "train" else 0
        trainer._resume_global_step = trainer.global_step = cursor.global_step
        # A value of another kind says nothing about this one's.
        same_kind = meta.get("best_by", best.LOSS) == self._best_by
        if meta["best_val_loss"] is not None and same_kind:
            trainer.best_val_loss = meta["best_val_loss"]
        if meta["missed_best"] is not None and same_kind:
            self._folders.missed_best = meta["missed_best"]
        if meta["run_id"] is not None:
            trainer.checkpointer._patches_run_id = meta["run_id"]  # see save_best_scope
        self._validated_at = meta["validated_at"]
        self.cursor = self._begun = cursor
        self._restore_generators_of = found
        logger.info(
            f"resuming from {found.record.name}: epoch {cursor.epoch}, {cursor.local_step} of its "
            f"batches done, step {cursor.global_step}"
        )

    def _watch_loaders(self) -> None:
        def events(after_batch: Any, before_fetch: Any) -> Events:
            return Events(self._iteration_started, before_fetch, self._waiting, after_batch)

        trainer = self.trainer
        trainer.train_loader = Watched(
            trainer.train_loader, events(self._step_done, self._remember_generators)
        )
        if trainer.val_loader is not None:
            trainer.val_loader = Watched(
                trainer.val_loader, events(self._stop_if_asked, lambda: None)
            )

    # --- what the loaders tell --------------------------------------------------------------

    def _iteration_started(self) -> None:
        if self._restore_generators_of is not None:
            self.saves.restore_rng(self._restore_generators_of)
            self._restore_generators_of = None
        # Kept through a validation, which is done again from its start if it is cut short.
        self._generators = rng.capture()

    def _remember_generators(self) -> None:
        # Without workers the fetch itself may draw random numbers (noise augmentation).
        self._generators = rng.capture()

    def _waiting(self) -> Any:
        # Several ranks must stop at the same step, so one alone never leaves a fetch.
        return self.signals.waiting() if self._alone else contextlib.nullcontext()

    def _before_update(self, *_: Any) -> None:
        self._updating = True

    def update_done(self) -> None:
        """The optimizers and schedulers of one step are through."""
        self._updated = True

    def request_save(self) -> None:
        """Save at the end of the step in hand (upstream's --checkpoint-freq below 1)."""
        self._requested = True

    def _step_done(self) -> None:
        self._count_step()
        self._stop_if_asked()
        if self._requested:
            self._requested = False
            self._save("frequency", wait_s=0.0)
        elif self.saves.step(self.cursor, meta=self._meta()):
            self._begun = self.cursor

    def _count_step(self) -> None:
        """Bring the cursor up to upstream's counter; from here the live state is the one to save.

        For the last step before --max-steps this is done after the epoch's loop.
        """
        steps = self.trainer.global_step - self.cursor.global_step
        if steps:
            self.cursor = replace(
                self.cursor,
                local_step=self.cursor.local_step + steps,
                global_step=self.trainer.global_step,
            )
        self._updating = self._updated = False
        self._generators = None

    def _stop_if_asked(self) -> None:
        """Raises Interrupted after a signal, NonFiniteState after a save that was refused."""
        number, unfit = self.signals.received, self.saves.unfit()
        if not self._alone:
            answers = self.saves.ranks.gather({"signal": number or 0, "unfit": brief(unfit)})
            number = max(answer["signal"] for answer in answers) or None
            unfit = next((answer["unfit"] for answer in answers if answer["unfit"]), "")
        if unfit:
            raise finite.NonFiniteState(unfit)
        if number is not None:
            raise Interrupted(number)

    # --- saving -----------------------------------------------------------------------------

    def _meta(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "best_val_loss": _or_none(trainer.best_val_loss),
            "best_by": self._best_by,
            "run_id": getattr(trainer.checkpointer, "_patches_run_id", None),
            "schedule_steps": [int(one.last_epoch) for one in trainer.schedulers],
            "validated_at": self._validated_at,
            "missed_best": _or_none(self._folders.missed_best),
            **self._provenance,
        }

    def _refuse_nonfinite(self, tensors: Mapping[str, Any]) -> None:
        """`RunCheckpoints.check`: no trained weight and no moment with a NaN is ever written."""
        model = getattr(self.trainer.model, "module", self.trainer.model)
        trained = {f"model/{name}" for name, p in model.named_parameters() if p.requires_grad}
        try:
            finite.assert_finite(
                (path.removeprefix("model/"), tensor)
                for path, tensor in tensors.items()
                if path in trained or path.startswith("optimizers/")
            )
        except finite.NonFiniteState as error:
            raise UnfitError(str(error)) from None

    def _assert_finite(self) -> None:
        """For upstream's folders; step checkpoints are looked at in the background.

        Raises:
            finite.NonFiniteState: on all ranks.
        """
        model = getattr(self.trainer.model, "module", self.trainer.model)
        bad = ""
        try:
            finite.assert_finite(finite.trained_state(model, self.trainer.optimizers))
        except finite.NonFiniteState as error:
            bad = str(error)
        # A shard of another rank may be bad while ours is not: all of them stop, or none.
        for answer in self.saves.ranks.gather({"bad": brief(bad)}):
            if answer["bad"]:
                raise finite.NonFiniteState(answer["bad"])

    def _save(self, *tags: str, wait_s: float, commit_s: float | None = None) -> bool:
        # A save takes the generators in use: they must be those from which training goes on.
        if self._restore_generators_of is not None:
            self.saves.restore_rng(self._restore_generators_of)
        elif self._generators is not None:
            rng.restore(self._generators)
        done = self.saves.save(
            self.cursor, *tags, meta=self._meta(), wait_s=wait_s, commit_s=commit_s
        )
        if done:
            self._begun = self.cursor
        return done

    # --- training ---------------------------------------------------------------------------

    def train(self) -> None:
        """In place of `Trainer.run_training`.

        Raises:
            SystemExit: after a signal, with 128 + its number.
        """
        with self.signals:
            try:
                self._epochs()
                self._end_workers()
                self.saves.close(_COMMIT_S)
            except BaseException as error:
                self._go_down(error)
                if isinstance(error, Interrupted):
                    raise SystemExit(128 + error.number) from None
                if isinstance(error, OSError) and self.signals.received is not None:
                    # A progress bar that wrote to the terminal which has just hung up.
                    raise SystemExit(128 + self.signals.received) from error
                raise
            if self.signals.received is not None:
                raise SystemExit(128 + self.signals.received)

    def _epochs(self) -> None:
        last = self.trainer.config.num_epochs - 1
        has_trained = False
        while True:
            if self.cursor.phase == "epoch_done":
                if self._at_max_steps() or self.cursor.epoch >= last:
                    break
                self.cursor = Cursor(self.cursor.epoch + 1, 0, self.cursor.global_step)
            if self.cursor.epoch > last:
                logger.warning(f"nothing to train: all {last + 1} epochs are done")
                return
            has_trained = True
            if not self._one_epoch(is_last=self.cursor.epoch == last):
                break
        self._folders.make_the_last(self.cursor)
        self._folders.insist_on_best(has_trained=has_trained)

    def _one_epoch(self, *, is_last: bool) -> bool:
        """Trains, publishes and validates what is left of an epoch; whether it was all of it."""
        trainer, epoch = self.trainer, self.cursor.epoch
        whole = True
        if self.cursor.phase == "train":
            whole = self._train_to_its_end(epoch)
        finished = is_last or self._at_max_steps()
        self._folders.after_epoch(self.cursor, finished=finished, epoch_ended=whole)
        self._stop_if_asked()
        tags = ["epoch"] if whole else ["max_steps"]
        if whole or self._validated_at != trainer.global_step:
            metrics = trainer.val_epoch(epoch)
            if self._folders.improve(self.cursor, metrics, epoch_ended=whole):
                tags.append("best")
            self._validated_at = trainer.global_step
        self._generators = None
        if whole:
            self.cursor = replace(self.cursor, phase="epoch_done")
        if finished:
            tags.append("final")
        # A slow disk may cost this save: then the validation is done again after a resume.
        wanted = finished or "best" in tags
        committed = self._save(
            *tags, wait_s=_WAIT_S if wanted else 0.0, commit_s=_COMMIT_S if finished else None
        )
        self._stop_if_asked()
        if finished:
            self._insist_on_the_last(committed)
        return whole

    def _insist_on_the_last(self, committed: bool) -> None:
        """A run whose end is nowhere on the disk has not succeeded.

        Raises:
            SaveFailedError: on all ranks, if the last save failed on one.
        """
        if all(answer["done"] for answer in self.saves.ranks.gather({"done": committed})):
            return
        raise SaveFailedError(
            f"all {self.trainer.global_step} steps are trained, but their checkpoint could not be "
            f"written to {self.saves.root} (see the log); free space or mend the disk and run the "
            f"same command: it goes on from {self.saves.last_committed or 'the beginning'}"
        )

    def _train_to_its_end(self, epoch: int) -> bool:
        trainer = self.trainer
        if self._noise is not None:
            self._noise.begin(epoch)
        if hasattr(trainer.train_loader.batch_sampler, "set_epoch"):
            trainer.train_loader.batch_sampler.set_epoch(epoch)
        batches = len(trainer.train_loader)
        if not self._at_max_steps():
            logger.info(f"Training epoch {epoch + 1}/{trainer.config.num_epochs} started")
            trainer.train_epoch(epoch)
            self._count_step()
            logger.info(f"Training epoch {epoch + 1}/{trainer.config.num_epochs} completed")
        if self.cursor.local_step < batches and self._at_max_steps():
            return False
        self.cursor = replace(self.cursor, phase="validate")
        self._save("trained", wait_s=0.0)
        return True

    def _at_max_steps(self) -> bool:
        limit = self.trainer.config.max_steps
        return limit is not None and self.cursor.global_step >= limit

    # --- on the way down --------------------------------------------------------------------

    def _go_down(self, error: BaseException) -> None:
        """Ends the workers and saves the last complete step."""
        try:
            self._end_workers()
            if isinstance(error, finite.NonFiniteState | SaveFailedError):
                logger.error("no checkpoint of this state is written")
            else:
                self._save_last(error)
        except Exception as failure:  # noqa: BLE001 - the first error is the one to report
            logger.error(f"no checkpoint could be written on the way down: {failure}")
        self.saves.close(_WAIT_S if self._alone else _LAST_CALL_S)
        logger.error(
            f"training stopped at step {self.trainer.global_step}; the newest checkpoint is "
            f"{self.saves.last_committed or 'none at all'}; run the same command to go on"
        )

    def _end_workers(self) -> None:
        for loader in (self.trainer.train_loader, self.trainer.val_loader):
            if loader is not None:
                loader.end_workers()

    def _save_last(self, error: BaseException) -> None:
        if self._updating and not self._updated:
            logger.error("stopped inside an optimizer step: these weights are not saved")
            return
        if self._updated:  # the step is done, only its bookkeeping was not
            self.cursor = replace(
                self.cursor,
                local_step=self.cursor.local_step + 1,
                global_step=self.cursor.global_step + 1,
            )
            self._generators = None
        commit_s = _COMMIT_S
        if not isinstance(error, Interrupted) and self._last_call is not None:
            self.saves.ranks = self._last_call
            commit_s = 3 * _LAST_CALL_S
        if self._begun == self.cursor and self.saves.flush(commit_s):
            return
        self._save("shutdown", wait_s=_WAIT_S, commit_s=commit_s)

    def begin_anew(self) -> None:
        """A run from scratch beside older checkpoints: from now on a resume finds this one."""
        self._save("start", wait_s=_WAIT_S, commit_s=_COMMIT_S)


def _or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
