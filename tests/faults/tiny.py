"""A random EAGLE-3 drafter and random batches for upstream's own Trainer, on the CPU.

What is tested with it is what happens to weights, schedules, metrics and files when data goes
wrong, not what is learnt. Imports upstream: only for probes that run in a process of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

HIDDEN, LAYERS, VOCABULARY, TOKENS = 32, 3, 64, 24


def verifier(folder: Path) -> Path:
    """Writes a tiny Llama with random weights; its folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    path = folder / "verifier"
    if not path.exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return path


def drafter(
    folder: Path, draft_vocabulary: list[int] | None = None, body: Path | None = None
) -> Any:
    """Upstream's Eagle3DraftModel, the same weights every time.

    Args:
        folder: where the verifier is, or is written.
        draft_vocabulary: ids of the full vocabulary that it can say; None: all.
        body: another verifier of the same sizes; None: the tiny Llama.
    """
    from speculators.models.eagle3.core import Eagle3DraftModel
    from transformers import LlamaConfig

    t2d = d2t = None
    if draft_vocabulary is not None:
        t2d = torch.zeros(VOCABULARY, dtype=torch.bool)
        t2d[draft_vocabulary] = True
        d2t = torch.tensor(draft_vocabulary) - torch.arange(len(draft_vocabulary))
    path = body or verifier(folder)
    torch.manual_seed(1)
    model = Eagle3DraftModel.from_training_args(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
        ),
        t2d=t2d,
        d2t=d2t,
        draft_vocab_size=VOCABULARY if draft_vocabulary is None else len(draft_vocabulary),
        norm_before_residual=False,
        target_layer_ids=[1, 2, 3],
        verifier_name_or_path=str(path),
        ttt_steps=2,
        draft_attn_impl="sdpa",
    )
    return model.float()


def sample(seed: int) -> dict[str, torch.Tensor]:
    """One row as upstream's data set gives it: a prompt of 4 tokens, then the reply."""
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(TOKENS, 4, HIDDEN, generator=random).to(torch.bfloat16)
    return {
        "hidden_states": states[:, :-1].flatten(1),
        "input_ids": torch.randint(0, VOCABULARY, (TOKENS,), generator=random),
        "verifier_last_hidden_states": states[:, -1],
        "loss_mask": torch.arange(TOKENS) >= 4,
        "lengths": torch.tensor([TOKENS]),
        "position_ids": torch.arange(TOKENS),
    }


class Batches(Dataset[Any]):
    """One batch a letter, collated by upstream.

    R real; E every sample failed; M no token of it trains; N a NaN in its hidden states. The n-th R
    is the same in every plan.
    """

    def __init__(self, plan: str) -> None:
        from speculators.models.eagle3.data import shift_batch
        from speculators.train.data import CollateFn

        self.plan = plan
        self.collate = CollateFn(TOKENS, HIDDEN, 3, torch.bfloat16, shift_batch)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> dict[str, Any]:
        kind = self.plan[index]
        if kind == "E":
            from speculators.train.recovery import SampleUnavailable

            return self.collate([SampleUnavailable("it timed out", counts_as_failure=True)])
        row = sample(self.plan[:index].count("R"))
        if kind == "M":
            row["loss_mask"] = torch.zeros(TOKENS, dtype=torch.bool)
        if kind == "N":
            row["hidden_states"][7, 5] = torch.nan
        return self.collate([row])


def eager_loss() -> Any:
    """Upstream's KL loss in the form that needs no Triton."""
    try:
        from speculators.losses import resolve_loss_config
    except ImportError:  # 0.7 has no other form
        from speculators.models.metrics import resolve_loss_config

        return resolve_loss_config("kl_div")
    return resolve_loss_config("kl_div", "eager")


def loader(plan: str) -> DataLoader[Any]:
    return DataLoader(Batches(plan), batch_size=None)


def trainer(folder: Path, plan: str, validation: str | None = "R", **options: Any) -> Any:
    """Upstream's Trainer over those plans; it saves under `folder / "out"`."""
    from speculators.train.trainer import Trainer, TrainerConfig

    calls = {
        "ttt_steps": 2,
        "ttt_step_loss_decay": 1.0,
        "loss_config": eager_loss(),
    }
    config = TrainerConfig(
        lr=options.pop("lr", 1e-3),
        num_epochs=options.pop("num_epochs", 1),
        save_path=str(folder / "out"),
        train_call_kwargs=calls,
        val_call_kwargs=calls,
        **options,
    )
    return Trainer(
        drafter(folder), config, loader(plan), None if validation is None else loader(validation)
    )


def weights(trained: Any) -> dict[str, torch.Tensor]:
    """A copy of what trains, by name."""
    model = getattr(trained.model, "module", trained.model)
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Euclidean distance over all weights."""
    return float(torch.cat([(one[name] - other[name]).flatten() for name in one]).norm())


def quiet() -> None:
    """No progress bars and only warnings, so that a probe's last line is its answer."""
    import logging

    logging.getLogger("speculators").setLevel(logging.ERROR)
