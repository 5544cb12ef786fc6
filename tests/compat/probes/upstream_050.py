"""speculators 0.5.0 at a size for a CPU: its own drafters, data set, trainer.

What its 0.5.0 needs to run without an accelerator, and only for these probes: `local_rank="cpu"` in
the trainer's configuration (it is only ever handed to `.to()`), and attention computed densely from
upstream's own mask, because PyTorch's flex_attention has no backward on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models import attention
from speculators.models.dflash import DFlashSpeculatorConfig
from speculators.models.dflash.core import DFlashDraftModel
from speculators.models.eagle3 import Eagle3SpeculatorConfig
from speculators.models.eagle3.core import Eagle3DraftModel
from speculators.proposals.greedy import GreedyTokenProposalConfig
from speculators.train.trainer import Trainer, TrainerConfig
from torch.nn.attention.flex_attention import create_mask
from torch.utils.data import DataLoader
from transformers import LlamaConfig, Qwen3Config

HIDDEN = 32
VOCABULARY = 64


def use_dense_attention() -> None:
    """Replaces flex attention by scaled_dot_product_attention over the same mask."""

    def dense(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any,
        scaling: float | None = None, **_: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        lengths = query.shape[2], key.shape[2]
        mask = create_mask(attention_mask.mask_mod, 1, 1, *lengths, device="cpu")
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    attention.ALL_ATTENTION_FUNCTIONS.register("simple_flex_attention", dense)


def eagle3() -> Eagle3DraftModel:
    """A Llama EAGLE-3 drafter over three hidden states of the body, seeded."""
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=LlamaConfig(**_SHAPE),
        draft_vocab_size=VOCABULARY,
        norm_before_residual=True,
        eagle_aux_hidden_state_layer_ids=[1, 2, 3],
        speculators_config=_speculators_config("eagle3"),
    )
    return _filled(Eagle3DraftModel(config))


def dflash(num_target_layers: int) -> DFlashDraftModel:
    """A DFlash drafter over as many hidden states of the body as asked for, seeded."""
    config = DFlashSpeculatorConfig(
        transformer_layer_config=Qwen3Config(**_SHAPE),
        draft_vocab_size=VOCABULARY,
        block_size=4,
        max_anchors=8,
        mask_token_id=0,
        aux_hidden_state_layer_ids=list(range(1, num_target_layers + 1)),
        speculators_config=_speculators_config("dflash"),
    )
    return _filled(DFlashDraftModel(config))


def write_data(folder: Path, lengths: list[int], num_target_layers: int = 3) -> None:
    """A prepared data set of random tokens with one cached hidden-state file a sample.

    Files are what upstream's client loads: hidden_states [length, num_target_layers + 1, HIDDEN]
    bfloat16 and token_ids [length] int64.
    """
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[Any]] = {"input_ids": [], "loss_mask": [], "seq_len": lengths}
    (folder / "hidden_states").mkdir(parents=True)
    for index, length in enumerate(lengths):
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator)
        states = torch.randn(length, num_target_layers + 1, HIDDEN, generator=generator)
        save_file(
            {"token_ids": ids, "hidden_states": states.to(torch.bfloat16)},
            folder / "hidden_states" / f"hs_{index}.safetensors",
        )
        rows["input_ids"].append(ids.tolist())
        rows["loss_mask"].append([True] * length)
    Dataset.from_dict(rows).with_format("torch").save_to_disk(folder)


def trainer(
    model: Any,
    loader: DataLoader[Any],
    dtype: torch.dtype,
    save_path: Path,
    call: dict[str, Any],
) -> Trainer:
    """Upstream's trainer, one epoch, constant rate."""
    return Trainer(
        model,
        TrainerConfig(
            lr=1e-3,
            num_epochs=1,
            save_path=str(save_path),
            local_rank="cpu",  # type: ignore[arg-type]
            train_call_kwargs=call,
            scheduler_type="none",
            hidden_states_dtype=dtype,
        ),
        loader,
    )


_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


def _speculators_config(algorithm: str) -> SpeculatorsConfig:
    return SpeculatorsConfig(
        algorithm=algorithm,
        proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
        default_proposal_method="greedy",
        verifier=VerifierConfig(name_or_path="body", architectures=["LlamaForCausalLM"]),
    )


def _filled(model: Any) -> Any:
    """Upstream leaves what it loads from the body as NaN; here it is random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.isnan().any():
                parameter.normal_(std=0.02)
    return model
