"""An interrupted run is resumable, at a whole step."""

import json
import os
import signal

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


class Interrupting(Dataset):
    """Batches, one of which sends a signal while it is being fetched."""

    def __init__(self, at, signum):
        self.at, self.signum = at, signum
        self.batches = Batches("R" * 6)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == self.at:
            os.kill(os.getpid(), self.signum)
        return self.batches[index]


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def hang_up_ends_no_test_run():
    """What nobody handles fails the test instead of ending pytest."""

    def unhandled(*_):
        raise AssertionError("SIGHUP was not handled")

    before = signal.signal(signal.SIGHUP, unhandled)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("signum", SIGNALS)
def test_it_saves_the_batches_that_are_trained(tmp_path, signum):
    trainer = make_trainer(tmp_path, "R" * 6)
    trainer.train_loader = DataLoader(Interrupting(3, signum), batch_size=None)

    trainer.run_training()

    state = json.loads((tmp_path / "out" / "0" / "training_state.json").read_text())
    assert state["local_step"] == state["global_step"] == 3
    resumed = make_trainer(tmp_path, "R" * 6, resume_from_checkpoint=True)
    assert (resumed.current_epoch, resumed._resume_local_step) == (0, 3)
    assert torch.equal(weights(resumed), weights(trainer))


@pytest.mark.parametrize("between", ["before", "after"])
def test_an_update_is_not_cut_in_two(tmp_path, monkeypatch, between):
    """Muon steps and AdamW does not, if the signal is raised between the two."""
    straight = make_trainer(tmp_path / "a", "RR", scheduler_total_steps=100)
    straight.train_epoch(0)
    trainer = make_trainer(tmp_path / "b", "R" * 6, scheduler_total_steps=100)
    second = trainer.optimizers[-1]
    step = second.step
    calls = []

    def interrupted_step(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2 and between == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        result = step(*args, **kwargs)
        if len(calls) == 2 and between == "after":
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    monkeypatch.setattr(second, "step", interrupted_step)
    trainer.run_training()

    assert torch.equal(weights(trainer), weights(straight))
    state = json.loads((tmp_path / "b/out/0/training_state.json").read_text())
    assert state["local_step"] == state["global_step"] == 2


def test_the_log_names_the_folder_that_is_there(tmp_path, caplog):
    trainer = make_trainer(tmp_path, "R" * 6)
    trainer.train_loader = DataLoader(Interrupting(3, signal.SIGTERM), batch_size=None)

    with caplog.at_level("INFO", logger="speculators"):
        trainer.run_training()

    said = [record.getMessage() for record in caplog.records]
    assert f"Checkpoint saved to {tmp_path / 'out' / '0'}" in said
    assert not any("interrupted'" in text for text in said)
    assert not (tmp_path / "out" / "interrupted").exists()


def test_the_handlers_from_before_are_back(tmp_path):
    before = [signal.getsignal(signum) for signum in SIGNALS]

    make_trainer(tmp_path, "R").run_training()

    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def test_nohup_is_respected(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        trainer = make_trainer(tmp_path, "R" * 6)
        trainer.train_loader = DataLoader(
            Interrupting(3, signal.SIGHUP), batch_size=None
        )
        trainer.run_training()
    finally:
        signal.signal(signal.SIGHUP, before)

    assert trainer.global_step == 6


def test_it_is_known_which_signal_it_was(tmp_path):
    trainer = make_trainer(tmp_path, "R" * 6)
    trainer.train_loader = DataLoader(Interrupting(3, signal.SIGTERM), batch_size=None)

    trainer.run_training()

    assert trainer.shutdown_handler.signum == signal.SIGTERM
