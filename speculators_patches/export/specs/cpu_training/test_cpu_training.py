"""Training, saving and resuming where there is no accelerator."""

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.train.distributed import (
    get_world_size,
    maybe_destroy_distributed,
    maybe_setup_distributed,
)
from speculators.train.trainer import Trainer, TrainerConfig
from speculators.utils.util import get_current_device

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="there is an accelerator"
)

TOKENS, HIDDEN = 16, 32
SHAPE = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


class Batches(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        states = torch.randn(1, TOKENS, 4 * HIDDEN, generator=generator)
        return {
            "hidden_states": states[..., HIDDEN:].bfloat16(),
            "verifier_last_hidden_states": states[..., :HIDDEN].bfloat16(),
            "input_ids": torch.randint(0, 64, (1, TOKENS), generator=generator),
            "loss_mask": torch.ones(1, TOKENS, dtype=torch.bool),
            "position_ids": torch.arange(1, TOKENS + 1).unsqueeze(0),
            "document_ids": torch.zeros(1, TOKENS, dtype=torch.long),
            "error_records": 0,
        }


def make_trainer(folder, **options):
    verifier = str(folder / "verifier")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHAPE)).save_pretrained(
        verifier
    )
    model = Eagle3DraftModel.from_training_args(
        LlamaConfig(num_hidden_layers=1, **SHAPE),
        draft_vocab_size=64,
        norm_before_residual=False,
        target_layer_ids=[0, 1, 2],
        verifier_name_or_path=verifier,
        ttt_steps=1,
        draft_attn_impl="sdpa",
    )
    call = {"ttt_steps": 1, "loss_config": resolve_loss_config("kl_div", "eager")}
    config = TrainerConfig(
        **{"lr": 1e-3, "num_epochs": 1, "save_path": str(folder / "out")} | options,
        train_call_kwargs=call,
        val_call_kwargs=call,
    )
    loader = DataLoader(Batches(), batch_size=None)
    return Trainer(model, config, loader, loader)


def test_it_trains_validates_and_saves(tmp_path):
    trainer = make_trainer(tmp_path)
    before = trainer.model.fc.weight.detach().clone()

    trainer.run_training()

    assert trainer.global_step == 4
    assert not torch.equal(trainer.model.fc.weight, before)
    assert (tmp_path / "out" / "0" / "model.safetensors").is_file()


def test_it_resumes(tmp_path):
    make_trainer(tmp_path).run_training()

    resumed = make_trainer(tmp_path, num_epochs=2, resume_from_checkpoint=True)
    resumed.run_training()

    assert resumed.current_epoch == 1
    assert (tmp_path / "out" / "1" / "model.safetensors").is_file()


def test_checkpoints_are_loaded_to_the_cpu():
    assert get_current_device() == "cpu"


def _rank(rank, port, results):
    os.environ.update(
        LOCAL_RANK=str(rank),
        RANK=str(rank),
        WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    maybe_setup_distributed()
    number = torch.tensor(float(rank + 1))
    dist.all_reduce(number)
    results.put((get_world_size(), number.item()))
    maybe_destroy_distributed()


def test_ranks_talk_over_gloo():
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    port = 20000 + os.getpid() % 20000
    ranks = [context.Process(target=_rank, args=(n, port, results)) for n in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    found = [results.get(timeout=5) for _ in ranks]

    assert found == [(2, 3.0), (2, 3.0)]
