"""Batches without a trainable token move nothing and count as nothing."""

import contextlib

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


def rates(trainer):
    return [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("empty", ["E", "M"])
def test_they_move_no_weight_and_no_schedule(tmp_path, optimizer, empty):
    trainer = make_trainer(
        tmp_path, "R" * 4, optimizer=optimizer, scheduler_total_steps=100
    )
    trainer.train_epoch(0)
    before, rate = weights(trainer), rates(trainer)

    trainer.train_loader = make_loader(empty * 5)
    with contextlib.suppress(RuntimeError):  # that the epoch trained on nothing
        trainer.train_epoch(1)

    assert torch.equal(weights(trainer), before)
    assert rates(trainer) == rate
    assert trainer.global_step == 9


def test_a_run_with_them_equals_one_without(tmp_path):
    with_empty = make_trainer(tmp_path / "a", "RREERMR", scheduler_total_steps=100)
    without = make_trainer(tmp_path / "b", "RRRR", scheduler_total_steps=100)
    with_empty.train_epoch(0)
    without.train_epoch(0)

    assert torch.equal(weights(with_empty), weights(without))


def test_they_do_not_dilute_validation(tmp_path):
    trainer = make_trainer(tmp_path, "R", "RR")
    expected = trainer.val_epoch(0)
    trainer.val_loader = make_loader("REMR")

    seen = trainer.val_epoch(0)

    for name in ("loss_epoch", "full_acc_0_epoch", "full_acc_1_epoch"):
        assert seen[name] == pytest.approx(expected[name]), name


def test_a_validation_without_data_says_nothing(tmp_path):
    trainer = make_trainer(tmp_path, "R", "EE")

    with pytest.raises(RuntimeError, match="no trainable token"):
        trainer.val_epoch(0)


def test_a_run_without_data_is_no_success(tmp_path):
    trainer = make_trainer(tmp_path, "EEE")

    with pytest.raises(RuntimeError, match="trainable token"):
        trainer.run_training()

    assert not (tmp_path / "out" / "checkpoint_best").exists()


def test_the_rest_of_a_resumed_epoch_may_be_empty(tmp_path):
    trainer = make_trainer(tmp_path, "RR", scheduler_total_steps=100)
    trainer.train_epoch(0)
    trainer.maybe_save_checkpoint(0, local_step=2)

    resumed = make_trainer(
        tmp_path, "EE", resume_from_checkpoint=True, scheduler_total_steps=100
    )
    resumed.train_epoch(0)

    assert resumed.global_step == 4
