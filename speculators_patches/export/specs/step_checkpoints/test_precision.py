"""A resumed run is the run that was never stopped."""

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


def moments(trainer):
    return [
        (key, value.clone())
        for optimizer in trainer.optimizers
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_state_comes_back_bit_for_bit(tmp_path, optimizer):
    options = {"optimizer": optimizer, "scheduler_total_steps": 100}
    trainer = make_trainer(tmp_path, "RRRR", **options)
    trainer.run_training()
    resumed = make_trainer(
        tmp_path, "RRRR", resume_from_checkpoint=True, num_epochs=2, **options
    )

    assert torch.equal(weights(resumed), weights(trainer))
    for (key, saved), (name, loaded) in zip(
        moments(trainer), moments(resumed), strict=True
    ):
        assert key == name
        assert torch.equal(loaded, saved), key
        assert loaded.dtype == saved.dtype


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_ends_with_the_same_weights(tmp_path, optimizer):
    options = {"optimizer": optimizer, "scheduler_total_steps": 100}
    straight = make_trainer(tmp_path / "a", "RRRR", num_epochs=3, **options)
    straight.run_training()
    make_trainer(tmp_path / "b", "RRRR", num_epochs=1, **options).run_training()

    resumed = make_trainer(
        tmp_path / "b", "RRRR", resume_from_checkpoint=True, num_epochs=3, **options
    )
    resumed.run_training()

    assert torch.equal(weights(resumed), weights(straight))


def test_what_vllm_loads_is_still_bfloat16(tmp_path):
    make_trainer(tmp_path, "RR").run_training()

    model = Eagle3DraftModel.from_pretrained(tmp_path / "out" / "0")

    assert model.fc.weight.dtype == torch.bfloat16


def test_frozen_weights_are_not_stored_twice(tmp_path):
    trainer = make_trainer(tmp_path, "RR")
    trainer.run_training()

    path = trainer.checkpointer.trained_weights_path(0)

    trained = weights(trainer).numel() * 4
    assert trained <= path.stat().st_size < trained + 8192


def test_a_checkpoint_of_an_older_version_loads(tmp_path):
    trainer = make_trainer(tmp_path, "RR", scheduler_total_steps=100)
    trainer.run_training()
    trainer.checkpointer.trained_weights_path(0).unlink()

    resumed = make_trainer(
        tmp_path, "RR", resume_from_checkpoint=True, scheduler_total_steps=100
    )

    torch.testing.assert_close(weights(resumed), weights(trainer).bfloat16().float())
