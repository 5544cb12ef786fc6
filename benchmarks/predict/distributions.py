"""The served and the drafted distribution, and what lies between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class SamplingError(ValueError):
    """Sampling that this arithmetic does not cover; the message says which."""


@dataclass(frozen=True)
class Sampling:
    """How the body's tokens are drawn; 0 and 1.0 switch top-k and top-p off, as in vLLM."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# What vLLM takes from a body's generation_config.json and is not modelled here, with the value
# that means "off".
_UNCOVERED = {"repetition_penalty": 1.0, "min_p": 0.0}


def defaults_of(body: str) -> dict[str, Any]:
    """top_k and top_p that vLLM takes from the body's generation_config.json (its default).

    Raises:
        SamplingError: it sets something that is not modelled.
    """
    told = _generation_config(body)
    for name, off in _UNCOVERED.items():
        if told.get(name, off) not in (off, None):
            raise SamplingError(
                f"{body} sets {name}={told[name]} in generation_config.json; expected acceptance "
                "is not computed for that: serve with --generation-config vllm and predict for a "
                "copy without it."
            )
    return {"top_k": int(told.get("top_k") or 0), "top_p": float(told.get("top_p") or 1.0)}


def _generation_config(body: str) -> Mapping[str, Any]:
    file = Path(body) / "generation_config.json"
    if not Path(body).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            file = Path(hf_hub_download(body, "generation_config.json"))
        except EntryNotFoundError:
            return {}
    return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}


def served(logits: torch.Tensor, how: Sampling) -> torch.Tensor:
    """The distribution that the body's next token is drawn from.

    Args:
        logits: float32 [..., vocabulary], softcapped.

    Returns:
        float32 probabilities of the same shape; one-hot at temperature 0. Temperature, then top-k,
        then top-p, as vLLM applies them.
    """
    import torch

    if how.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    scaled = logits / how.temperature
    if 0 < how.top_k < scaled.shape[-1]:
        least = scaled.topk(how.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if how.top_p < 1.0:
        ordered, order = scaled.sort(dim=-1)
        below = ordered.softmax(-1).cumsum(-1) <= 1 - how.top_p
        below[..., -1] = False  # the best one always stays
        scaled = scaled.masked_fill(torch.zeros_like(below).scatter(-1, order, below), -torch.inf)
    return scaled.softmax(-1)


def drafted(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """The drafter's distribution: its softmax at the request's temperature, nothing cut off.

    Args:
        logits: float32 [..., draft vocabulary].
    """
    import torch

    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros_like(logits).scatter_(-1, best, 1.0)
    return (logits / temperature).softmax(-1)


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Logits as Gemma serves them; same operations and precision as vLLM's LogitsProcessor."""
    return logits if cap is None else (logits / cap).tanh() * cap


@dataclass(frozen=True)
class Measures:
    """p against q at some positions; all float32 of one shape [positions].

    Attributes:
        kl: KL(p || q) in nats; infinite where p has mass that q cannot give.
        overlap: sum of min(p, q): acceptance of a token drawn from q. 1 - overlap is the total
            variation.
        greedy: p(argmax q): acceptance of the drafter's best token.
        unsayable: mass of p outside the draft vocabulary.
        log_ratio: log q(t) - log p(t) of the text's own next token t; -inf where q cannot say it.
        hit: 1.0 where t is the drafter's best token.
        best: largest probability of p: what the best possible greedy draft reaches.
        best_hit: 1.0 where t is p's likeliest token.
    """

    kl: torch.Tensor
    overlap: torch.Tensor
    greedy: torch.Tensor
    unsayable: torch.Tensor
    log_ratio: torch.Tensor
    hit: torch.Tensor
    best: torch.Tensor
    best_hit: torch.Tensor


def compare(
    p: torch.Tensor, q: torch.Tensor, text: torch.Tensor, sayable: torch.Tensor | None
) -> Measures:
    """What verification makes of drafts from q.

    Args:
        p: [positions, vocabulary] served probabilities.
        q: [positions, draft vocabulary] drafted ones.
        text: [positions] int64, the token that the body wrote there (drawn from p).
        sayable: [draft vocabulary] int64, the full id of each draft id; None: the same ids.
    """
    import torch

    at = text[:, None]
    within = p if sayable is None else p[:, sayable]
    favourite = q.argmax(-1, keepdim=True)
    said = favourite if sayable is None else sayable[favourite]
    if sayable is None:
        q_text = q.gather(-1, at)
    else:
        same = sayable[None, :] == at
        q_text = torch.where(same, q, torch.zeros_like(q)).sum(-1, keepdim=True)
    inside = within.sum(-1)
    kl = torch.special.xlogy(within, within / q.clamp_min(1e-30)).sum(-1)
    unsayable = (1 - inside).clamp_min(0)
    best = p.max(-1)
    return Measures(
        kl=torch.where(unsayable > 1e-6, torch.inf, kl),
        overlap=torch.minimum(within, q).sum(-1),
        greedy=p.gather(-1, said)[:, 0],
        unsayable=unsayable,
        log_ratio=(q_text.log() - p.gather(-1, at).clamp_min(1e-30).log())[:, 0],
        hit=(said == at)[:, 0].float(),
        best=best.values,
        best_hit=(best.indices == text).float(),
    )
