"""What vLLM's drafter sees: its head's inputs, its logits, and the distribution that it draws from.

    python -m speculators_patches run --only vllm_cpu_sampling --module tests.e2e.drafted_logits \\
        -- BODY DRAFTER SPECULATIVE_CONFIG TEMPERATURE OUT.pt

Serves the body in this process (vLLM, V1 runner on a CPU), answers one prompt, and saves what
`compute_logits` and `_sample_from_logits` of the drafter were given and gave, call by call.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROMPT = [2, 4, 299, 204, 500, 329, 494, 316, 269, 476, 267, 570, 312, 280]
TOKENS = 12


def make_drafter(kind: str, body: Path, folder: Path, sayable: list[int] | None) -> Path:
    """An untrained drafter of upstream's, as upstream saves it, in bfloat16; its folder.

    Args:
        kind: eagle3, peagle or dflash.
        sayable: ids of the full vocabulary that it can say; None: all.
    """
    import torch
    from speculators.model import SpeculatorModel
    from transformers import LlamaConfig, Qwen3Config

    told = json.loads((body / "config.json").read_text("utf-8"))
    vocabulary = int(told["vocab_size"])
    t2d = d2t = None
    if sayable is not None:
        t2d = torch.zeros(vocabulary, dtype=torch.bool)
        t2d[sayable] = True
        d2t = torch.tensor(sayable) - torch.arange(len(sayable))
    family = Qwen3Config if kind == "dflash" else LlamaConfig
    layer = family(
        vocab_size=vocabulary, hidden_size=told["hidden_size"], intermediate_size=256,
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        max_position_embeddings=1024, rms_norm_eps=1e-6,
    )  # fmt: skip
    assert SpeculatorModel.registry is not None
    torch.manual_seed(1)
    model = SpeculatorModel.registry[kind].from_training_args(
        layer, t2d=t2d, d2t=d2t, draft_vocab_size=vocabulary if sayable is None else len(sayable),
        norm_before_residual=True, target_layer_ids=[1, 2, 3], mask_token_id=3, num_depths=4,
        block_size=5, ttt_steps=4, verifier_name_or_path=str(body), draft_attn_impl="sdpa",
    )  # fmt: skip
    model.to(torch.bfloat16).save_pretrained(str(folder))
    return folder


def main() -> None:
    """See the module."""
    body, drafter, config, temperature, out = sys.argv[1:]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its objects are ours to look at

    import torch
    from vllm import LLM, SamplingParams
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    seen: dict[str, list[Any]] = {"hidden": [], "logits": [], "probabilities": []}
    sample = SpecDecodeBaseProposer._sample_draft_tokens
    draw = SpecDecodeBaseProposer._sample_from_logits

    def sampling(self: Any, hidden: torch.Tensor, metadata: Any) -> Any:
        seen["hidden"].append(hidden.clone())
        seen["head"] = self.model.lm_head.weight.clone()
        return sample(self, hidden, metadata)

    def drawing(self: Any, logits: torch.Tensor, metadata: Any) -> Any:
        seen["logits"].append(logits.clone())
        tokens, probabilities = draw(self, logits, metadata)
        seen["probabilities"].append(None if probabilities is None else probabilities.clone())
        return tokens, probabilities

    SpecDecodeBaseProposer._sample_draft_tokens = sampling
    SpecDecodeBaseProposer._sample_from_logits = drawing
    llm = LLM(
        model=body, dtype="float32", max_model_len=256, enforce_eager=True,
        kv_cache_memory_bytes=64 * 2**20, distributed_executor_backend="uni",
        speculative_config={**json.loads(config), "model": drafter, "num_speculative_tokens": 4,
                            "draft_sample_method": "probabilistic"},
    )  # fmt: skip
    for found in seen.values():
        found.clear() if isinstance(found, list) else None  # of the warm-up
    llm.generate(
        {"prompt_token_ids": PROMPT},
        SamplingParams(temperature=float(temperature), seed=0, max_tokens=TOKENS, ignore_eos=True),
    )
    torch.save(seen, out)


if __name__ == "__main__":
    main()
