"""How far the targets of each drafter kind go, for a verifier that caps at 2. Prints JSON.

python -m tests.faults.probes.softcap_kinds FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from speculators_patches import apply, revert
from tests.faults import tiny

CAP = 2.0
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip


def largest_target(kind: str, verifier: Path) -> float:
    """Of a fresh drafter's `verifier_lm_head`, whose output all kinds take for the targets."""
    from speculators.models.dflash import DFlashDraftModel
    from speculators.models.eagle3 import Eagle3DraftModel
    from speculators.models.peagle import PEagleDraftModel
    from transformers import LlamaConfig, Qwen3Config

    kinds: dict[str, tuple[Any, Any]] = {
        "eagle3": (Eagle3DraftModel, LlamaConfig),
        "peagle": (PEagleDraftModel, LlamaConfig),
        "dflash": (DFlashDraftModel, Qwen3Config),
    }
    model, config = kinds[kind]
    drafter = model.from_training_args(
        config(num_hidden_layers=1, **SHAPE), draft_vocab_size=64, norm_before_residual=False,
        target_layer_ids=[0, 1], verifier_name_or_path=str(verifier), ttt_steps=1, num_depths=1,
        mask_token_id=0, draft_attn_impl="sdpa",
    )  # fmt: skip
    states = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) * 50
    return float(drafter.verifier_lm_head(states).abs().max())


def main() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tiny.quiet()
    verifier = Path(sys.argv[1]) / "verifier"
    torch.manual_seed(0)
    config = Gemma2Config(num_hidden_layers=2, final_logit_softcapping=CAP, **SHAPE)
    Gemma2ForCausalLM(config).save_pretrained(verifier)
    found = {}
    for kind in ("eagle3", "peagle", "dflash"):
        found[kind] = {"unpatched": largest_target(kind, verifier)}
        apply(only=["softcap_targets"])
        found[kind]["patched"] = largest_target(kind, verifier)
        revert()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
