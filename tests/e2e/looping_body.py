"""A hand-made body that answers behind its chat template and loops without it.

The word it says follows from the word before alone: from the template's last word through a short
text to the end of the turn, and from the "?" that ends a bare prompt round and round. That is what
the published body did on a raw endpoint, in the smallest form that vLLM serves.
"""

from __future__ import annotations

import json
from pathlib import Path

START, END = "answer:", "<end>"
# No word twice: the next word depends on the last one only.
TEXT = (
    "Soak two cups of dried beans overnight , then rinse them well and simmer in fresh water with "
    "an onion until soft ; add salt near the end because early seasoning keeps skins tough ."
)
LOOP = "I am sorry but cannot help"
PROMPTS = 8
# Logit of the next word above all others': sure, but with a distribution to be sampled from.
_SURE = 9.0


def make(folder: Path) -> Path:
    """Writes the model, its tokenizer and its chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    answer, loop = TEXT.split(), LOOP.split()
    extra = ["tell", "me", "how", "number", "?", *(f"n{k}" for k in range(PROMPTS))]
    names = ["<unk>", "<begin>", END, START, *dict.fromkeys([*answer, *loop, *extra])]
    size = 128
    ids = {name: k for k, name in enumerate(names)}
    follows = dict(zip([START, *answer], [*answer, END], strict=True))
    follows |= dict(zip(["?", *loop], [*loop, loop[0]], strict=True))

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=size, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=1, eos_token_id=ids[END], pad_token_id=0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for layer in model.model.layers:  # what a layer adds is nothing
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        head = torch.zeros(size, size)
        for name, following in follows.items():
            # The last norm turns a unit vector into one of length sqrt(size).
            head[ids[following], ids[name]] = _SURE / size**0.5
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)

    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<begin>", eos_token=END
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }} {% endfor %}" + START
    )
    tokenizer.save_pretrained(folder)
    return folder


def prompts(path: Path) -> Path:
    """Writes prompts that hold some of the answer's words, so that a lookup drafts wrongly."""
    rows = [
        {"id": f"beans-{k}", "prompt": f"tell me how n{k} beans in water keeps soft number ?"}
        for k in range(PROMPTS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
