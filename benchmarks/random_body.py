"""Gemma 4 26B-A4B and its EAGLE-3 drafter as configuration only, for servers that make up weights.

vLLM's `--load-format dummy` fills a model of this shape with random numbers on the device: the time
of a step does not depend on what the weights say, as long as tokens go to many experts. Whole
layers can be left out (`layers`) and widths divided, so that a CPU can start the same thing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LAYERS, VOCABULARY, DRAFT_VOCABULARY = 30, 262_144, 32_000


def fp8_dynamic() -> dict[str, Any]:
    """compressed-tensors' record of FP8-Dynamic: weights per channel, activations per token."""
    number = {"num_bits": 8, "type": "float", "symmetric": True}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head", "re:.*router.*", "re:.*embed.*"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": number | {"strategy": "channel", "dynamic": False},
                "input_activations": number | {"strategy": "token", "dynamic": True},
                "output_activations": None,
                "format": "float-quantized",
            }
        },
    }


def write_body(folder: Path, *, divide: int = 1, layers: int = LAYERS, fp8: bool = True) -> Path:
    """Writes config.json of the body; its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY // divide,
        "vocab_size_per_layer_input": VOCABULARY // divide,
        "hidden_size": 2816 // divide,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2112 // divide,
        "num_hidden_layers": layers,
        "layer_types": [
            "full_attention" if (k + 1) % 6 == 0 or k == layers - 1 else "sliding_attention"
            for k in range(layers)
        ],
        "sliding_window": 1024,
        "num_attention_heads": 16 // min(divide, 4),
        "num_key_value_heads": 8 // min(divide, 4),
        "num_global_key_value_heads": max(1, 2 // divide),
        "head_dim": 256 // min(divide, 8),
        "global_head_dim": 512 // min(divide, 8),
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 128 // divide,
        "top_k_experts": max(1, 8 // divide),
        "moe_intermediate_size": 704 // divide,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {
                "rope_type": "proportional", "rope_theta": 1_000_000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
    }  # fmt: skip
    if fp8:
        config["quantization_config"] = fp8_dynamic()
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def write_drafter(folder: Path, *, divide: int = 1, layers: int = LAYERS) -> Path:
    """Writes config.json of the drafter, in the form that vLLM reads; its folder."""
    if layers < 7:
        raise ValueError(f"--layers {layers}: three different layers are read, so at least 7.")
    folder.mkdir(parents=True, exist_ok=True)
    read = [2, layers // 2, layers - 3]
    config = {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": VOCABULARY // divide,
        "draft_vocab_size": DRAFT_VOCABULARY // divide,
        "hidden_size": 2816 // divide,
        "intermediate_size": 2112 // divide,
        "num_hidden_layers": 1,
        "num_attention_heads": 16 // min(divide, 4),
        "num_key_value_heads": 8 // min(divide, 4),
        "head_dim": 256 // min(divide, 8),
        "max_position_embeddings": 131_072,
        "eagle_aux_hidden_state_layer_ids": read,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": read, "use_aux_hidden_state": True},
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def spread_weights(model: Any) -> None:
    """Norms of 1 and FP8 weights of every size, so that logits and experts differ by token."""
    import torch

    generator = torch.Generator("cpu").manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name and parameter.is_floating_point():
            parameter.data.fill_(1.0)
        elif parameter.dtype in (torch.float8_e4m3fn,):
            piece = torch.randn(2**20, generator=generator).to(parameter.dtype)
            flat = parameter.data.view(torch.uint8).reshape(-1)
            piece = piece.view(torch.uint8).to(flat.device)
            for start in range(0, flat.numel(), piece.numel()):
                part = flat[start : start + piece.numel()]
                part.copy_(piece[: part.numel()])
        elif parameter.dtype == torch.float32 and "scale" in name:
            parameter.data.fill_(0.02)


class SpreadWeights:
    """For vLLM's --worker-extension-cls: `spread_weights` in the server's own process."""

    model_runner: Any

    def spread_weights(self) -> None:
        spread_weights(self.model_runner.model)


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of made-up words beside a body's config; servers want one to start."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({f"w{n}": n for n in range(vocabulary)}, unk_token="w0")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="w0")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
