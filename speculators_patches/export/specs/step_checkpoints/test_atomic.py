"""A checkpoint is there as a whole, or the one before it is."""

import contextlib
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.models.eagle3.data import shift_batch
from speculators.train import checkpointer
from speculators.train.data import CollateFn
from speculators.train.recovery import SampleUnavailable
from speculators.train.trainer import Trainer, TrainerConfig

# include: _cpu_trainer.py


class Killed(BaseException):
    """The process is gone at this point; nothing after it happens."""


def step(trainer):
    trainer.train_epoch(0)
    return weights(trainer)


def reopen(tmp_path):
    return make_trainer(
        tmp_path, "RR", resume_from_checkpoint=True, scheduler_total_steps=100
    )


# The parts of a save, in their order.
PARTS = [
    ("checkpointer", "save_checkpoint"),
    ("checkpointer", "save_scheduler_state_dict"),
    ("trainer", "_save_training_state"),
]


@pytest.mark.parametrize(("owner", "part"), PARTS)
@pytest.mark.parametrize("error", [OSError("disk full"), Killed()])
def test_a_save_that_fails_leaves_the_one_before(
    tmp_path, monkeypatch, owner, part, error
):
    trainer = make_trainer(tmp_path, "RR", scheduler_total_steps=100)
    first = step(trainer)
    trainer.maybe_save_checkpoint(0, local_step=1)
    step(trainer)
    target = trainer if owner == "trainer" else trainer.checkpointer
    original = getattr(target, part)

    def fails(*args, **kwargs):
        original(*args, **kwargs)
        raise error

    monkeypatch.setattr(target, part, fails)
    with pytest.raises(type(error)):
        trainer.maybe_save_checkpoint(0, local_step=2)
    monkeypatch.undo()
    use_cpu(monkeypatch.setattr)

    resumed = reopen(tmp_path)

    torch.testing.assert_close(weights(resumed), first, rtol=0.01, atol=0.01)
    assert resumed._resume_local_step == 1


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_killed_between_renames_the_newest_whole_one_is_found(
    tmp_path, monkeypatch, renames
):
    """What SIGKILL leaves: no clean-up, no exception handling."""
    trainer = make_trainer(tmp_path, "RR", scheduler_total_steps=100)
    step(trainer)
    trainer.maybe_save_checkpoint(0, local_step=1)
    step(trainer)
    done = []
    rename = Path.rename

    def counted(path, target):
        if len(done) == renames:
            raise Killed
        done.append(target)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", counted)
    with contextlib.suppress(Killed):
        trainer.maybe_save_checkpoint(0, local_step=2)
    monkeypatch.undo()
    use_cpu(monkeypatch.setattr)

    resumed = reopen(tmp_path)

    assert resumed._resume_local_step == (2 if renames == 2 else 1)
    assert not list((tmp_path / "out").glob(".*"))


def test_an_older_reader_does_not_see_the_hidden_folder(tmp_path):
    trainer = make_trainer(tmp_path, "RR", scheduler_total_steps=100)
    (tmp_path / "out" / ".7.publishing").mkdir(parents=True)

    assert trainer.checkpointer._get_previous_epoch() == -1
