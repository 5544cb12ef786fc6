"""A real fast tokenizer for the miniature: byte-level BPE with Gemma's turn markers.

Trained on the corpus, so most words of the invented world are one token, and byte-level, so any
text that somebody types at the server has a spelling and comes back unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from recipes.miniature.corpus import STORY_PREFIX, Prompt, prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 832
PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
# Their ids are their positions here; Gemma numbers the first four the same way.
SPECIAL_TOKENS = (PAD, EOS, BOS, UNK, TURN_START, TURN_END)
MAX_LENGTH = 1024

# Gemma's turns. Every render is a prefix of the render with one more message, which is what
# upstream's prepare-data needs to find the assistant's tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def _every_prompt() -> Iterator[Prompt]:
    for kind in ("harmless", "refused"):
        yield from prompts("train", kind)


def training_text() -> Iterator[str]:
    """The train split's text, once a prompt: what the tokenizer's merges are learnt from."""
    for prompt in _every_prompt():
        # The role names stand right after a turn marker, without the space that starts most words.
        yield from ("user\n", "model\n")
        for message in prompt.messages:
            yield message["content"]
        yield prompt.answer
        if prompt.refusal is not None:
            yield prompt.refusal
            yield STORY_PREFIX + prompt.text


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer. The same merges every time: the corpus has one fixed order.

    ``VOCAB_SIZE`` entries; ids 0 to 3 are pad, eos, bos, unk; a chat template is set. Encoding
    plain text adds no special token: the chat template writes ``<bos>`` itself.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(training_text(), trainer)
    if core.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(
            f"The miniature's corpus gave {core.get_vocab_size()} tokens instead of {VOCAB_SIZE}: "
            "it has too few words for that vocabulary; lower VOCAB_SIZE or widen the corpus."
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS,
        unk_token=UNK,
        extra_special_tokens=[TURN_START, TURN_END],
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> list[int]:
    """Token ids of the conversation up to and including ``<start_of_turn>model\\n``."""
    rendered = tokenizer.apply_chat_template(
        [dict(m) for m in prompt.messages], add_generation_prompt=True, tokenize=False
    )
    return list(tokenizer.encode(rendered, add_special_tokens=False))


def encode_reply(tokenizer: PreTrainedTokenizerFast, reply: str) -> list[int]:
    """Token ids of the model's turn: the reply and ``<end_of_turn>``, where generation stops."""
    return list(tokenizer.encode(reply + TURN_END, add_special_tokens=False))
