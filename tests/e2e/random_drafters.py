"""Untrained drafters for the miniature's body, of kinds that the bench compares but no run makes.

Google's assistant (MTP: layers that read the body's KV cache) and DFlash (all drafts in one pass,
from the body's hidden states), at the body's sizes and with random weights: what is shown with them
is that the arm is served, counted and compared, not what such a drafter is worth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Layers of the body whose outputs DFlash reads.
_TARGETS = [0, 2]


def mtp_assistant(body: Path, folder: Path) -> Path:
    """Writes an assistant with one sliding and one full layer, as the body's last two are."""
    import torch
    from transformers import Gemma4AssistantConfig, Gemma4AssistantForCausalLM, Gemma4TextConfig

    given = _config(body)
    kept = ("vocab_size", "max_position_embeddings", "num_attention_heads", "num_key_value_heads",
            "head_dim", "attention_k_eq_v", "rope_parameters", "sliding_window", "rms_norm_eps",
            "final_logit_softcapping", "hidden_activation", "bos_token_id", "eos_token_id",
            "pad_token_id")  # fmt: skip
    text = Gemma4TextConfig(
        **{key: given[key] for key in kept},
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_kv_shared_layers=2,
        layer_types=given["layer_types"][-2:], enable_moe_block=False, use_double_wide_mlp=False,
        hidden_size_per_layer_input=0, vocab_size_per_layer_input=0,
        global_head_dim=given["per_layer_config"]["3"]["head_dim"],
        num_global_key_value_heads=given["per_layer_config"]["3"]["num_key_value_heads"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma4AssistantForCausalLM(
        Gemma4AssistantConfig(text_config=text, backbone_hidden_size=given["hidden_size"])
    )
    model.save_pretrained(folder)
    return folder


def dflash(body: Path, folder: Path) -> Path:
    """Writes a DFlash drafter of one full layer."""
    import torch
    from safetensors.torch import save_file

    given = _config(body)
    hidden, vocabulary = given["hidden_size"], given["vocab_size"]
    heads, head, inner = 4, 32, 256
    config = {
        "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": heads,
        "num_key_value_heads": heads, "head_dim": head, "vocab_size": vocabulary,
        "max_position_embeddings": given["max_position_embeddings"], "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "hidden_act": "silu", "attention_bias": False,
        "tie_word_embeddings": False, "torch_dtype": "float32", "block_size": 8,
        "num_target_layers": given["num_hidden_layers"], "layer_types": ["full_attention"],
        "dflash_config": {"target_layer_ids": _TARGETS, "mask_token_id": given["pad_token_id"]},
    }  # fmt: skip
    rows = {
        "fc": (hidden, hidden * len(_TARGETS)),
        "layers.0.self_attn.q_proj": (heads * head, hidden),
        "layers.0.self_attn.k_proj": (heads * head, hidden),
        "layers.0.self_attn.v_proj": (heads * head, hidden),
        "layers.0.self_attn.o_proj": (hidden, heads * head),
        "layers.0.mlp.gate_proj": (inner, hidden),
        "layers.0.mlp.up_proj": (inner, hidden),
        "layers.0.mlp.down_proj": (hidden, inner),
    }
    norms = {"hidden_norm": hidden, "norm": hidden, "layers.0.input_layernorm": hidden,
             "layers.0.post_attention_layernorm": hidden, "layers.0.self_attn.q_norm": head,
             "layers.0.self_attn.k_norm": head}  # fmt: skip
    torch.manual_seed(0)
    weights = {f"{name}.weight": torch.randn(shape) * 0.05 for name, shape in rows.items()}
    weights |= {f"{name}.weight": torch.ones(size) for name, size in norms.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    save_file(weights, folder / "model.safetensors")
    return folder


def _config(body: Path) -> dict[str, Any]:
    return dict(json.loads((body / "config.json").read_text("utf-8")))
