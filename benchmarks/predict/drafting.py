"""The drafter as upstream loads it, and what it drafts at every start and depth of a text.

Upstream's own forward pass with `ttt_steps` = n is a roll-out of serving: at depth k it reads the
text's tokens, its own hidden states of the depths before, and the body's states up to the start
only. (vLLM feeds the tokens that it drafted; where they are not the text's, the draft has fallen.)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.client import BenchError
from benchmarks.predict.distributions import soft_cap

if TYPE_CHECKING:
    import torch


def layers_read(drafter: str) -> tuple[int, ...]:
    """The body's layers that a drafter (folder or hub id) reads, without its last one.

    Raises:
        BenchError: it is no EAGLE-3 drafter of upstream's, or does not say.
    """
    told = config_of(drafter)
    kind = told.get("speculators_model_type")
    layers = told.get("eagle_aux_hidden_state_layer_ids")
    if kind != "eagle3" or not layers:
        raise BenchError(
            f"{drafter} is {kind or 'no drafter of speculators'}; expected acceptance is computed "
            "for eagle3 drafters whose config lists eagle_aux_hidden_state_layer_ids."
        )
    return tuple(int(layer) for layer in layers)


def config_of(model: str) -> dict[str, Any]:
    """config.json of a folder or hub id."""
    file = Path(model) / "config.json"
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(model, "config.json"))
        except (OSError, ValueError) as e:
            raise BenchError(
                f"{model} is neither a folder here nor to be had from the hub "
                f"({str(e).partition(chr(10))[0]})."
            ) from None
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except OSError as e:
        raise BenchError(f"Cannot read {file}: {e.strerror}.") from None


def softcap_of(body: str) -> float | None:
    """The body's final_logit_softcapping, its text_config's if it has one."""
    told = config_of(body)
    cap = told.get("text_config", told).get("final_logit_softcapping")
    return None if cap is None else float(cap)


@dataclass
class Body:
    """What turns the body's last hidden state into logits: its final norm, head and softcap."""

    head: torch.Tensor
    norm: Any
    cap: float | None

    def logits(self, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(raw, served) float32 [positions, vocabulary] for states [positions, hidden size]."""
        import torch

        with torch.no_grad():
            raw = self.norm(last.to(self.head.dtype)) @ self.head.T
            return raw.float(), soft_cap(raw, self.cap).float()


@dataclass
class Drafter:
    """A loaded drafter. `sayable` is the full id of each draft id, None if it can say all."""

    name: str
    model: Any
    sayable: torch.Tensor | None

    def logits(self, ids: torch.Tensor, aux: torch.Tensor, depth: int) -> list[torch.Tensor]:
        """Draft logits, rolled out.

        Args:
            ids: [tokens] int64.
            aux: [tokens, layers * hidden size], the states of the layers that it reads.
            depth: n.

        Returns:
            n tensors [tokens - 1, draft vocabulary] float32: row i of the k-th is what it drafts,
            knowing the text up to token i + 1, for token i + 2 + k.
        """
        import torch

        seen: list[torch.Tensor] = []
        handle = self.model.lm_head.register_forward_hook(
            lambda _module, _given, out: seen.append(out[0].float())
        )
        tokens = len(ids) - 1
        try:
            with torch.no_grad():
                self.model(
                    hidden_states=aux[None, :-1].to(self.model.fc.weight.dtype),
                    input_ids=ids[None, 1:],
                    document_ids=torch.zeros(1, tokens, dtype=torch.long, device=ids.device),
                    position_ids=torch.arange(1, tokens + 1, device=ids.device)[None],
                    ttt_steps=depth,
                )
        finally:
            handle.remove()
        return seen


def load(
    name: str, drafter: str, body: str, device: str, dtype: torch.dtype
) -> tuple[Drafter, Body]:
    """The drafter, and the body's own end, on `device`.

    The verifier that the drafter's config names may be another one (the vanilla body): its head is
    not used, only the drafter's own weights are.

    Raises:
        BenchError: they do not fit each other.
    """
    from speculators.config import VerifierConfig
    from speculators.model import SpeculatorModel
    from speculators.models.eagle3.core import Eagle3DraftModel
    from speculators.utils.loading import load_model_layers

    from speculators_patches.patches.verifier_norm_gain import FAMILIES

    assert SpeculatorModel.registry is not None
    config = Eagle3DraftModel.config_class.from_pretrained(drafter)
    config.transformer_layer_config._attn_implementation = "sdpa"
    config.speculators_config.verifier = VerifierConfig.from_pretrained(body)
    model = Eagle3DraftModel.from_pretrained(drafter, config=config)
    model = model.to(device=device, dtype=dtype).eval()

    found = load_model_layers(["embed_tokens.weight", "lm_head.weight", "model.norm.weight"], body)
    head = found.get("lm_head.weight", found["embed_tokens.weight"]).to(device=device, dtype=dtype)
    told = config_of(body)
    text = told.get("text_config", told)
    gain = found["model.norm.weight"].float() + (text.get("model_type") in FAMILIES)
    norm = _rms_norm(gain.to(device), float(text.get("rms_norm_eps", 1e-6)), dtype)
    if head.shape[1] != model.hidden_size or head.shape[0] != model.verifier_vocab_size:
        raise BenchError(
            f"{drafter} drafts for a body of hidden size {model.hidden_size} and vocabulary "
            f"{model.verifier_vocab_size}; {body} has {head.shape[1]} and {head.shape[0]}."
        )
    sayable = None
    if model.use_draft_vocab:
        import torch

        sayable = model.d2t + torch.arange(len(model.d2t), device=device)
    return Drafter(name, model, sayable), Body(head, norm, softcap_of(body))


def _rms_norm(gain: torch.Tensor, eps: float, dtype: torch.dtype) -> Any:
    def norm(x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        wide = wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        return (wide * gain).to(dtype)

    return norm
