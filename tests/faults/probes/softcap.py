"""The targets that upstream's training step sees beside what the verifier serves. Prints JSON.

    python -m tests.faults.probes.softcap FOLDER

Real tiny verifiers of transformers write the logits that they would serve and, in the same pass,
the hidden states in front of their final norm; upstream's drafter is loaded on each verifier and
given those states. What reaches `compute_metrics` as targets is compared with the logits.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from speculators_patches import apply
from tests.faults import tiny

PATCHES = ["softcap_targets", "verifier_norm_gain"]
CAP = 5.0
SPOKEN = list(range(0, tiny.VOCABULARY, 2))  # of the pruned vocabulary: even ids


def verifiers(folder: Path) -> dict[str, Any]:
    """Verifiers by name, random weights, heads scaled until the cap bites; saved under their name.

    `nested` keeps its text part in `text_config`, as Gemma 4's own checkpoints do.
    """
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        Gemma4Config,
        Gemma4ForCausalLM,
        Gemma4ForConditionalGeneration,
        Gemma4TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    shape = {
        "vocab_size": tiny.VOCABULARY,
        "hidden_size": tiny.HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    gemma4 = Gemma4TextConfig(
        **shape,
        head_dim=16,
        global_head_dim=16,
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=tiny.VOCABULARY,
        final_logit_softcapping=CAP,
    )
    torch.manual_seed(0)
    made = {
        "gemma2": Gemma2ForCausalLM(
            Gemma2Config(**shape, head_dim=16, final_logit_softcapping=CAP)
        ),
        "gemma4": Gemma4ForCausalLM(gemma4),
        "nested": Gemma4ForConditionalGeneration(
            Gemma4Config(text_config=gemma4.to_dict(), vision_config=None, audio_config=None)
        ),
        "uncapped": Gemma2ForCausalLM(
            Gemma2Config(**shape, head_dim=16, final_logit_softcapping=None)
        ),
        "llama": LlamaForCausalLM(LlamaConfig(**shape)),
    }
    for name, model in made.items():
        model.eval()
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=1.5)
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight"):
                torch.nn.init.normal_(module.weight, mean=module.weight.mean().item(), std=0.1)
        model.save_pretrained(folder / name)
    return made


def served(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [1, tokens, vocabulary], and the states [1, tokens, hidden] before the final norm."""
    text = getattr(model.model, "language_model", model.model)
    seen: list[torch.Tensor] = []
    handle = text.norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    handle.remove()
    return logits, seen[-1]


def targets(folder: Path, states: torch.Tensor, spoken: list[int] | None) -> torch.Tensor:
    """What upstream's own training step takes for the verifier's logits at those states."""
    from speculators.models.eagle3 import core

    model = tiny.drafter(folder.parent, spoken, folder)
    seen: list[torch.Tensor] = []
    original = core.compute_metrics

    def watch(logits: Any, found: torch.Tensor, *rest: Any, **more: Any) -> Any:
        seen.append(found.detach().clone())
        return original(logits, found, *rest, **more)

    core.compute_metrics = watch
    try:
        length = states.shape[1]
        model(
            hidden_states=torch.zeros(1, length, 3 * tiny.HIDDEN),
            input_ids=torch.zeros(1, length, dtype=torch.long),
            document_ids=torch.zeros(1, length, dtype=torch.long),
            verifier_last_hidden_states=states,
            loss_mask=torch.ones(1, length, dtype=torch.bool),
            ttt_steps=1,
            loss_config=tiny.eager_loss(),
        )
    finally:
        core.compute_metrics = original
    return seen[0]


def farthest(mine: torch.Tensor, logits: torch.Tensor, spoken: list[int] | None) -> float:
    """Largest total variation, over positions, between both as distributions over `spoken`."""
    chosen = logits if spoken is None else logits[..., spoken]
    return float((mine.softmax(-1) - chosen.softmax(-1)).abs().sum(-1).max() / 2)


def main() -> None:
    tiny.quiet()
    folder = Path(sys.argv[1])
    ids = torch.randint(5, tiny.VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(2))
    results: dict[str, Any] = {}
    for name, model in verifiers(folder).items():
        logits, states = served(model, ids)
        results[name] = {"largest_logit": float(logits.abs().max())}
        for state, patches in (("unpatched", []), ("patched", PATCHES)):
            apply(only=patches)
            for label, spoken in (("full", None), ("pruned", SPOKEN)):
                seen = targets(folder / name, states, spoken)
                results[name][f"{state}_{label}"] = farthest(seen, logits, spoken)
        from speculators_patches import revert

        revert()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
