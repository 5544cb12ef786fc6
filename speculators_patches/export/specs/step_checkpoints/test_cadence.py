"""--checkpoint-steps saves inside an epoch, and a resume goes on from there."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.models.eagle3.data import shift_batch
from speculators.train import checkpointer
from speculators.train.config import TrainConfig
from speculators.train.data import CollateFn
from speculators.train.recovery import SampleUnavailable
from speculators.train.trainer import Trainer, TrainerConfig

# include: _cpu_trainer.py


@pytest.fixture
def saves(monkeypatch):
    """(epoch, local_step) of every checkpoint."""
    found = []
    original = Trainer._save_training_state

    def noted(self, epoch, local_step):
        found.append((epoch, local_step))
        return original(self, epoch, local_step)

    monkeypatch.setattr(Trainer, "_save_training_state", noted)
    return found


def test_every_n_steps_across_epochs(tmp_path, saves):
    trainer = make_trainer(tmp_path, "R" * 5, num_epochs=2, checkpoint_steps=3)

    trainer.run_training()

    # Global steps 3, 6 and 9; the ends of epochs have their own.
    assert saves == [(0, 3), (0, 0), (1, 1), (1, 4), (1, 0)]


def test_with_save_best_too(tmp_path, saves):
    trainer = make_trainer(tmp_path, "R" * 5, save_best=True, checkpoint_steps=2)

    trainer.train_epoch(0)

    assert saves == [(0, 2), (0, 4)]
    assert (tmp_path / "out" / "0" / "optimizer_state_dict.pt").is_file()


def test_off_by_default(tmp_path, saves):
    make_trainer(tmp_path, "R" * 5).train_epoch(0)

    assert saves == []


def test_a_resume_finds_it(tmp_path):
    trainer = make_trainer(tmp_path, "R" * 5, checkpoint_steps=2)
    trainer.train_epoch(0)  # and is killed before the epoch's own checkpoint

    resumed = make_trainer(tmp_path, "R" * 5, resume_from_checkpoint=True)

    assert (resumed.current_epoch, resumed._resume_local_step) == (0, 4)
    assert resumed.global_step == 4


def test_the_command_line_has_it():
    config = TrainConfig.resolve(
        ["--verifier-name-or-path", "x", "--checkpoint-steps", "500"]
    )

    assert config.flatten()["checkpoint_steps"] == 500
