"""For `speculators/train/trainer.py`, `speculators/train/cli.py` and the schema."""


def state_with_the_rest(self, epoch, local_step):
    if isinstance(epoch, int):
        self._save_training_state(epoch, local_step)


# ---- cadence ----


def every_so_many_steps(self, epoch, local_step, num_steps):
    if (
        self.config.checkpoint_steps is not None
        and self.global_step % self.config.checkpoint_steps == 0
        and local_step < num_steps  # at the end the epoch's own rules decide
    ):
        self.maybe_save_checkpoint(epoch, local_step=local_step, force=True)


def field_of_the_schema():
    checkpoint_steps: int | None = Field(
        default=None,
        ge=1,
        description="Also save a checkpoint every N optimizer steps, into the folder "
        "of the epoch in hand. Works with --save-best. Default: only by "
        "--checkpoint-freq.",
    )


def the_position(self, epoch):
    position = getattr(self, "_trained_batches", None)
    if epoch == "interrupted" and position is not None:
        # As a checkpoint in the middle of the epoch, which a resume finds.
        epoch, local_step, self.global_step = position
        force = True


def _update(self, epoch: int, local_step: int) -> None:
    """Step optimizers and schedulers and note the position, all or nothing."""
    with deferred_interrupts(self):
        self._optimizers_step()
        self._schedulers_step()
        self._trained_batches = (epoch, local_step, self.global_step + 1)


def epoch_is_done(self):
    self._trained_batches = None


def which_signal(trainer):
    interrupted_by = trainer.shutdown_handler.signum  # type: ignore[attr-defined]


def tell(interrupted_by):
    if interrupted_by is not None:
        raise SystemExit(128 + interrupted_by)
