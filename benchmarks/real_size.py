"""The EAGLE-3 drafter of Gemma 4 26B-A4B with random weights, and its training step.

Upstream's own model, optimizers and loss at the real dimensions, or all of them divided by a whole
number, so that a CPU can run the same program. The verifier is not needed: its head and embedding
are random, and the hidden states are made so that the next token can be learnt from them.

Dimensions: the body's config and RedHatAI's drafter for it; hidden 2816, vocabulary 262,144, draft
vocabulary 32,000, 16 heads of 256, 8 KV heads, MLP 2112, three layers' hidden states plus the last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class Size:
    """Dimensions of the drafter and the length of a packed batch.

    Args:
        divide: divides the widths, heads and vocabularies (1 = the real drafter).
        tokens: packed tokens a step.
    """

    divide: int = 1
    tokens: int = 4096
    hidden: int = field(init=False)
    heads: int = field(init=False)
    vocabulary: int = field(init=False)
    draft_vocabulary: int = field(init=False)

    def __post_init__(self) -> None:
        for name, real in (
            ("hidden", 2816), ("heads", 16), ("vocabulary", 262_144), ("draft_vocabulary", 32_000)
        ):  # fmt: skip
            if real % self.divide:
                raise ValueError(f"--divide {self.divide} does not divide {name} {real}.")
            object.__setattr__(self, name, real // self.divide)


def drafter(size: Size, device: str, *, seed: int = 0, attention: str | None = None) -> Any:
    """Upstream's Eagle3DraftModel in float32, as its trainer makes a fresh one.

    Args:
        attention: upstream's --draft-attn-impl; None: flex attention on a GPU, sdpa elsewhere.
    """
    from speculators.config import SpeculatorsConfig, VerifierConfig
    from speculators.models.eagle3 import Eagle3SpeculatorConfig
    from speculators.models.eagle3.core import Eagle3DraftModel
    from speculators.proposals.greedy import GreedyTokenProposalConfig
    from transformers import LlamaConfig

    layer = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=2112 // size.divide,
        num_hidden_layers=1,
        num_attention_heads=size.heads,
        num_key_value_heads=max(1, size.heads // 2),
        head_dim=256,
        max_position_embeddings=max(size.tokens, 8192),
    )
    on_gpu = torch.device(device).type != "cpu"
    layer._attn_implementation = attention or ("simple_flex_attention" if on_gpu else "sdpa")
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=layer,
        draft_vocab_size=size.draft_vocabulary,
        norm_before_residual=False,
        eagle_aux_hidden_state_layer_ids=[2, 15, 27],
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path=None, architectures=["Gemma4ForCausalLM"]),
        ),
    )
    torch.manual_seed(seed)
    model = Eagle3DraftModel(config=config).to(device)
    random = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in (model.embed_tokens, model.lm_head, model.verifier_lm_head):
            module.weight.normal_(0, size.hidden**-0.5, generator=random)
        # The verifier's head says what it hears: see `batch`.
        model.lm_head.weight.copy_(model.verifier_lm_head.weight)
        model.verifier_norm.weight.fill_(8.0)
        model.t2d[: size.draft_vocabulary] = True
    return model


def batch(size: Size, model: Any, seed: int, documents: int = 4) -> dict[str, torch.Tensor]:
    """One packed batch, as upstream's collate function makes it: `[1, tokens, ...]`.

    The body's last hidden state is its head's row of the token after the next one, so its logits
    name that token; the layers below are the same, noisier. A walk with a fixed stride over the
    draft vocabulary, from a random start in each document.

    Args:
        documents: how many fill the batch, all of one length.
    """
    random = torch.Generator().manual_seed(seed)
    length = size.tokens // documents
    start = torch.randint(size.draft_vocabulary, (documents, 1), generator=random)
    ids = (start + 7 * torch.arange(length + 1)) % size.draft_vocabulary
    device = model.verifier_lm_head.weight.device
    with torch.no_grad():
        following = ids[:, 1:].reshape(-1).to(device)
        last = model.verifier_lm_head.weight[following] * size.hidden**0.5
        noise = torch.randn(last.shape, generator=random).to(device)
        layers = torch.cat([last + scale * noise for scale in (1.0, 0.5, 0.1)], dim=-1)
    states = torch.float32 if device.type == "cpu" else torch.bfloat16
    document_ids = torch.arange(documents).repeat_interleave(length)
    return {
        "hidden_states": layers.to(states)[None],
        "input_ids": ids[:, :-1].reshape(1, -1).to(device),
        "verifier_last_hidden_states": last.to(states)[None],
        "loss_mask": torch.ones(1, documents * length, dtype=torch.bool, device=device),
        "document_ids": document_ids[None].to(device),
        "position_ids": torch.arange(length).repeat(documents)[None].to(device),
    }


class Training:
    """Model, optimizer and schedule with upstream's training step.

    Args:
        optimizer: upstream's name, "adamw" or "muon".
        ttt_steps: positions trained.
        loss: upstream's --loss-implementation.
    """

    def __init__(
        self,
        size: Size,
        device: str,
        *,
        seed: int = 0,
        optimizer: str = "adamw",
        ttt_steps: int = 3,
        loss: str = "eager",
        attention: str | None = None,
        total_steps: int = 1000,
    ) -> None:
        from speculators.losses import resolve_loss_config
        from speculators.train.optimizers import build_optimizers
        from transformers import get_cosine_schedule_with_warmup

        self.size, self.device = size, device
        self.model = drafter(size, device, seed=seed, attention=attention)
        self.model.train()
        self.optimizers = build_optimizers(
            self.model,
            SimpleNamespace(
                optimizer=optimizer, lr=1e-4, weight_decay=0.01, muon_lr=1e-3, muon_momentum=0.95,
                muon_weight_decay=0.1, muon_ns_steps=5, muon_adjust_lr_fn="match_rms_adamw",
            ),
        )  # fmt: skip
        self.schedulers = [
            get_cosine_schedule_with_warmup(one, max(1, total_steps // 100), total_steps)
            for one in self.optimizers
        ]
        self._call: dict[str, Any] = {
            "ttt_steps": ttt_steps,
            "ttt_step_loss_decay": 1.0,
            "loss_config": resolve_loss_config("kl_div", loss),
        }

    def loss(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        """The forward pass under upstream's autocast (float32 on a CPU, which emulates bf16)."""
        kind = torch.device(self.device).type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind != "cpu"):
            loss: torch.Tensor = self.model(**data, **self._call)[1]
        return loss

    def step(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        """One step as in upstream's train_epoch; the loss, not synchronised."""
        loss = self.loss(data)
        for one in self.optimizers:
            one.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for one in (*self.optimizers, *self.schedulers):
            one.step()
        return loss.detach()

    def trained(self) -> dict[str, torch.Tensor]:
        """A copy of what trains, by name."""
        return {
            name: parameter.detach().clone()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }


def synchronise(device: str) -> None:
    """Waits until the device has done what was asked."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
