"""A random tiny Llama that vLLM serves, and rows for upstream's trainer that fit it."""

from __future__ import annotations

from pathlib import Path

VOCABULARY, HIDDEN, LAYERS = 256, 64, 4
TARGETS = (1, 2, 3)  # layers that a drafter reads; the last one comes besides
ROW = 40  # tokens
TEMPLATE = "{% for message in messages %}w3 {{ message['content'] }} {% endfor %}"


def body(folder: Path) -> Path:
    """Writes the model with a tokenizer and a chat template; sure of what it says."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=64,
            num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )
    )  # fmt: skip
    torch.nn.init.normal_(llama.lm_head.weight, std=0.5)
    llama.to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w4"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2", unk_token="w4"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def rows(folder: Path, count: int, tokens: int = ROW) -> Path:
    """Writes a prepared data set of random rows without hidden states."""
    import torch
    from datasets import Dataset

    random = torch.Generator().manual_seed(1)
    out = []
    for _ in range(count):
        ids = torch.randint(5, VOCABULARY, (tokens,), generator=random).tolist()
        out.append({"input_ids": ids, "loss_mask": [0] * 4 + [1] * (tokens - 4), "seq_len": tokens})
    Dataset.from_list(out).with_format("torch").save_to_disk(str(folder))
    return folder
