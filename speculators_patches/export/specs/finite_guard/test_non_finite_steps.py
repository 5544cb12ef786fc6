"""A NaN or an infinity reaches neither a weight nor the name "best"."""

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


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_with_a_nan_equals_one_without(tmp_path, optimizer):
    options = {"optimizer": optimizer, "scheduler_total_steps": 100}
    spoilt = make_trainer(tmp_path / "a", "RRNRNNR", **options)
    clean = make_trainer(tmp_path / "b", "RRRR", **options)
    spoilt.train_epoch(0)
    clean.train_epoch(0)

    assert weights(spoilt).isfinite().all()
    assert torch.equal(weights(spoilt), weights(clean))
    assert spoilt.global_step == 7


def test_three_in_a_row_end_the_run_with_the_weights_from_before(tmp_path):
    trainer = make_trainer(tmp_path, "RRNNNR")
    clean = make_trainer(tmp_path / "b", "RR", scheduler_total_steps=6)
    clean.train_epoch(0)

    with pytest.raises(RuntimeError, match="not finite"):
        trainer.train_epoch(0)

    assert weights(trainer).isfinite().all()
    torch.testing.assert_close(weights(trainer), weights(clean))


def test_short_epochs_do_not_hide_three_in_a_row(tmp_path):
    trainer = make_trainer(tmp_path, "NN", scheduler_total_steps=6)
    trainer.train_epoch(0)

    with pytest.raises(RuntimeError, match="not finite"):
        trainer.train_epoch(1)


def test_an_overflowing_gradient_is_not_taken_for_zero(tmp_path):
    """Clipping by an infinite norm multiplies every gradient by 0."""
    trainer = make_trainer(tmp_path, "R", scheduler_total_steps=100)
    before = weights(trainer)
    weight = trainer.model.fc.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, 1e30))

    trainer.train_epoch(0)

    assert torch.equal(weights(trainer), before)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
@pytest.mark.parametrize("save_best", [False, True])
def test_a_non_finite_validation_loss_is_never_best(tmp_path, loss, save_best):
    trainer = make_trainer(tmp_path, "R", save_best=save_best)

    trainer.maybe_update_best(0, {"loss_epoch": loss})

    assert trainer.best_val_loss == float("inf")
    assert not trainer.checkpointer.best_path().exists()
