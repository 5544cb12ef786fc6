"""The arithmetic of abliteration, for any text-only Gemma 4 that transformers loads.

Generic: nothing here knows the miniature. A refusal direction is the difference between the mean
residual states of two sets of prompts at their last token. Taking it out of the weights means that
nothing a layer writes to the residual stream has a component along it.

Gemma 4 puts an RMSNorm behind each block, whose learnt weight ``w`` rescales every channel after
the last matrix. What reaches the stream from output ``o`` is ``w * o / rms(o)``, so for that to be
orthogonal to ``d`` it is ``w * d``, not ``d``, that has to leave the matrix. With experts the
feed-forward block has two such norms in a row, and their weights multiply.

Source of the method: Arditi et al. 2024, "Refusal in Language Models Is Mediated by a Single
Direction" (difference of means, weight orthogonalisation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import Gemma4ForCausalLM


@dataclass(frozen=True)
class Writer:
    """One matrix that writes to the residual stream.

    ``weight`` is ``[..., hidden, inputs]``, or ``[rows, hidden]`` for the embedding;
    ``hidden_dim`` says which dimension is the stream's; ``norm_weights`` are the post-norm weights
    between the matrix and the stream, each ``[hidden]``.
    """

    name: str
    weight: torch.Tensor
    hidden_dim: int
    norm_weights: tuple[torch.Tensor, ...] = ()

    def direction(self, stream_direction: torch.Tensor) -> torch.Tensor:
        """Unit vector, float32 ``[hidden]``: what must go so that the stream's direction goes."""
        weighted = stream_direction.float()
        for norm_weight in self.norm_weights:
            weighted = weighted * norm_weight.detach().float()
        return weighted / weighted.norm()


def writers(model: Gemma4ForCausalLM) -> Iterator[Writer]:
    """Every matrix of the model that writes to the residual stream.

    The embedding, each layer's ``o_proj``, dense ``down_proj``, experts' ``down_proj``, and the
    per-layer embedding's projection where the model has one (E2B, E4B). A tied ``lm_head`` is the
    embedding itself and changes with it.
    """
    yield Writer("embed_tokens", model.model.embed_tokens.weight, 1)
    for i, layer in enumerate(model.model.layers):
        attention = layer.post_attention_layernorm.weight
        yield Writer(f"layers.{i}.o_proj", layer.self_attn.o_proj.weight, 0, (attention,))
        outer = layer.post_feedforward_layernorm.weight
        if layer.enable_moe_block:
            dense, sparse = (
                layer.post_feedforward_layernorm_1.weight,
                layer.post_feedforward_layernorm_2.weight,
            )
            yield Writer(f"layers.{i}.mlp", layer.mlp.down_proj.weight, 0, (dense, outer))
            yield Writer(f"layers.{i}.experts", layer.experts.down_proj, 1, (sparse, outer))
        else:
            yield Writer(f"layers.{i}.mlp", layer.mlp.down_proj.weight, 0, (outer,))
        if getattr(layer, "per_layer_projection", None) is not None:
            after = layer.post_per_layer_input_norm.weight
            yield Writer(f"layers.{i}.per_layer", layer.per_layer_projection.weight, 0, (after,))


@torch.no_grad()
def project_out(model: Gemma4ForCausalLM, direction: torch.Tensor) -> None:
    """Take ``direction`` (``[hidden]``, any length but 0) out of every writer, in place.

    Computed in float32 and stored in each weight's own dtype. Nothing else is touched. Raises
    ``ValueError`` for a direction of the wrong size, zero, or not finite.
    """
    hidden = model.config.hidden_size
    if direction.shape != (hidden,) or not torch.isfinite(direction).all() or not direction.any():
        raise ValueError(
            f"The direction to project out must be {hidden} finite numbers, not all zero; "
            f"got shape {tuple(direction.shape)}."
        )
    for writer in writers(model):
        unit = writer.direction(direction)
        weight = writer.weight.float()
        along = torch.tensordot(weight, unit, dims=([writer.hidden_dim], [0]))
        shape = [1] * weight.dim()
        shape[writer.hidden_dim] = hidden
        removed = along.unsqueeze(writer.hidden_dim) * unit.view(shape)
        writer.weight.copy_(weight - removed)


@torch.no_grad()
def last_token_states(model: Gemma4ForCausalLM, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Residual states at each prompt's last token: float32 ``[layers, prompts, hidden]``.

    Index ``i`` is what layer ``i`` leaves in the stream, read by a hook: transformers' own
    ``output_hidden_states`` has the last one after the final norm. One prompt at a time: a pass
    each, and no padding to get wrong.
    """
    seen: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> None:
        seen.append(output[0, -1].detach().float().clone())

    hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
    try:
        for row in rows:
            model.model(input_ids=torch.tensor([list(row)], device=model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen).unflatten(0, (len(rows), len(hooks))).transpose(0, 1)


def mean_difference(refused: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
    """Unit difference of means, a layer each: two ``[layers, prompts, hidden]`` to
    ``[layers, hidden]``."""
    difference = refused.mean(dim=1) - answered.mean(dim=1)
    return difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-12)
