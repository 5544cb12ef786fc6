"""A real trainer over a tiny random drafter, for tests on a machine without an accelerator."""

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

# ---- shared ----
HIDDEN, TOKENS = 32, 24
SHAPE = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def make_drafter(folder):
    path = folder / "verifier"
    torch.manual_seed(0)
    verifier = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHAPE))
    verifier.bfloat16().save_pretrained(path)
    return Eagle3DraftModel.from_training_args(
        LlamaConfig(num_hidden_layers=1, **SHAPE),
        draft_vocab_size=64,
        norm_before_residual=False,
        target_layer_ids=[0, 1, 2],
        verifier_name_or_path=str(path),
        ttt_steps=2,
        draft_attn_impl="sdpa",
    )


def make_sample(seed):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(TOKENS, 4, HIDDEN, generator=generator).to(torch.bfloat16)
    return {
        "hidden_states": states[:, :-1].flatten(1),
        "input_ids": torch.randint(0, 64, (TOKENS,), generator=generator),
        "verifier_last_hidden_states": states[:, -1],
        "loss_mask": torch.arange(TOKENS) >= 4,
        "lengths": torch.tensor([TOKENS]),
        "position_ids": torch.arange(TOKENS),
    }


class Batches(Dataset):
    """One batch a letter: R real, E every sample failed, M all masked, N a NaN."""

    def __init__(self, plan):
        self.plan = plan
        self.collate = CollateFn(TOKENS, HIDDEN, 3, torch.bfloat16, shift_batch)

    def __len__(self):
        return len(self.plan)

    def __getitem__(self, index):
        kind = self.plan[index]
        if kind == "E":
            return self.collate([SampleUnavailable("timeout", counts_as_failure=True)])
        row = make_sample(self.plan[:index].count("R"))
        if kind == "M":
            row["loss_mask"] = torch.zeros(TOKENS, dtype=torch.bool)
        if kind == "N":
            row["hidden_states"][7, 5] = torch.nan
        return self.collate([row])


def make_loader(plan):
    return DataLoader(Batches(plan), batch_size=None)


class CpuTrainer(Trainer):
    """The trainer takes device 0 for granted; nothing else of it is changed."""

    def setup_trainer(self):
        self.local_rank = self.device_type = "cpu"
        super().setup_trainer()


def make_trainer(folder, plan, validation="R", **options):
    call = {
        "ttt_steps": 2,
        "ttt_step_loss_decay": 1.0,
        "loss_config": resolve_loss_config("kl_div", "eager"),
    }
    config = TrainerConfig(
        **{"lr": 1e-3, "num_epochs": 1, "save_path": str(folder / "out")} | options,
        train_call_kwargs=call,
        val_call_kwargs=call,
    )
    return CpuTrainer(
        make_drafter(folder), config, make_loader(plan), make_loader(validation)
    )


def weights(trainer):
    return torch.cat(
        [p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad]
    )


def use_cpu(put=setattr):
    """Where the trainer asks for an accelerator although it could do without."""
    put(torch.accelerator, "synchronize", lambda: None)
    put(checkpointer, "get_current_device", lambda: "cpu")


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    use_cpu(monkeypatch.setattr)
