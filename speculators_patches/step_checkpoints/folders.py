"""Which of upstream's folders a run makes, and when: epoch ends, the best, the last.

Only rank 0 writes; every rank learns whether a folder is there, because what follows has collective
calls. A folder that could not be written is an error in the log and costs the run nothing, unless
it is the one that the run is for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from speculators_patches.checkpointing.coordinator import brief
from speculators_patches.checkpointing.cursor import Cursor
from speculators_patches.checkpointing.errors import SaveFailedError
from speculators_patches.checkpointing.run import RunCheckpoints
from speculators_patches.step_checkpoints import best, epoch_folder

logger = logging.getLogger("speculators")


class Folders:
    """Of `trainer`, whose step checkpoints are `saves`.

    Args:
        check: raises, on all ranks, if the weights must not be written.
        commit_s: how long the first folder waits for the first step checkpoint.
        best_by: what makes a validation the best, see `best`.

    Attributes:
        missed_best: a validation better than that of `checkpoint_best`, whose folder could not be
            written, as `best.value`; infinite if there is none.
    """

    def __init__(
        self,
        trainer: Any,
        saves: RunCheckpoints,
        check: Callable[[], None],
        *,
        commit_s: float,
        best_by: str = best.LOSS,
    ) -> None:
        self.trainer = trainer
        self.saves = saves
        self.missed_best = math.inf
        self._check = check
        self._commit_s = commit_s
        self._best_by = best_by
        self._published_at: int | None = None  # global step

    def publish(self, cursor: Cursor, *, finished: bool, epoch_ended: bool) -> None:
        """Upstream's folder of this epoch, as it is now.

        Raises:
            epoch_folder.PublishFailed: on all ranks, only if `finished`; otherwise it is logged.
        """
        self._check()
        if self.saves.last_committed is None:
            # Killed between this folder and the first commit, the run would be taken over from it,
            # which is not exact.
            self.saves.flush(self._commit_s)
        failure: epoch_folder.PublishFailed | None = None
        try:
            epoch_folder.publish(
                self.trainer,
                cursor.epoch,
                cursor.local_step,
                finished=finished,
                epoch_ended=epoch_ended,
            )
        except epoch_folder.PublishFailed as error:
            failure = error
        told = self.saves.ranks.gather({"failure": brief(str(failure or ""))})[0]["failure"]
        if not told:
            self._published_at = self.trainer.global_step
        elif finished:
            raise failure or epoch_folder.PublishFailed(told)
        else:
            logger.error(f"{failure or told}; training goes on")

    def after_epoch(self, cursor: Cursor, *, finished: bool, epoch_ended: bool) -> None:
        """Upstream's rule: the first epoch, every `checkpoint_freq`-th, and here also the last."""
        config = self.trainer.config
        if not config.save_best and (finished or epoch_folder.due(config, cursor.epoch)):
            self.publish(cursor, finished=finished, epoch_ended=epoch_ended)

    def improve(
        self, cursor: Cursor, metrics: Mapping[str, float] | None, *, epoch_ended: bool
    ) -> bool:
        """Makes this epoch `checkpoint_best` if its validation is better than that one's.

        Args:
            metrics: of the validation.

        Returns:
            whether it is the best so far, which the step checkpoint is tagged with.
        """
        trainer = self.trainer
        value = best.value(metrics or {}, self._best_by)
        if metrics and value is None:
            logger.warning(
                f"{best.FLAG} {self._best_by}: validation reports no such acceptance (is its patch "
                "skipped, or the drafter no EAGLE-3 one?), so no checkpoint becomes the best"
            )
        if value is None or not value < trainer.best_val_loss or not math.isfinite(value):
            return False
        is_best_ever = value < self.missed_best
        if self._published_at != trainer.global_step:
            self.publish(cursor, finished=False, epoch_ended=epoch_ended)
        if self._published_at != trainer.global_step:
            self.missed_best = min(self.missed_best, value)
            return is_best_ever
        trainer.best_val_loss = value
        if is_best_ever:
            self.missed_best = math.inf
        trainer.checkpointer.save_val_metrics(cursor.epoch, metrics)
        trainer.checkpointer.update_best_symlink(cursor.epoch)
        logger.info(
            f"Updated checkpoint_best -> {cursor.epoch} ({best.told(value, self._best_by)})"
        )
        if trainer.config.save_best:
            trainer.checkpointer.cleanup_keep_only_best(best_epoch=cursor.epoch)
        return is_best_ever

    def make_the_last(self, cursor: Cursor) -> None:
        """For a run that was killed after its last step, but before its folder was there."""
        trainer = self.trainer
        state = epoch_folder.state_of(trainer.checkpointer.path / str(cursor.epoch))
        is_there = trainer.config.save_best or state.get("global_step") == trainer.global_step
        # Rank 0's view: on a network file system another one's may be older.
        if self.saves.ranks.gather({"is_there": is_there})[0]["is_there"]:
            return
        self.publish(cursor, finished=True, epoch_ended=cursor.phase == "epoch_done")

    def insist_on_best(self, *, has_trained: bool) -> None:
        """Not a success if `checkpoint_best` is only the second best.

        Raises:
            SaveFailedError: if this process trained; a later one only warns.
        """
        if self.missed_best >= self.trainer.best_val_loss:
            return
        path = self.trainer.checkpointer.path
        text = (
            f"the best validation ({best.told(self.missed_best, self._best_by)}) is not "
            f"{path / 'checkpoint_best'}: "
            "its folder could not be written at the time. If `checkpoints list` shows one tagged "
            f"best, `python -m speculators_patches checkpoints export {path} NEW_FOLDER "
            "--checkpoint best` writes it"
        )
        if has_trained:
            raise SaveFailedError(f"{text}; the same command again accepts what is there")
        logger.warning(text)
