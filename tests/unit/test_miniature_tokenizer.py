"""The miniature's tokenizer: any text comes back, and the chat template is prefix-stable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.miniature.corpus import prompts
from recipes.miniature.tokenizer import (
    SPECIAL_TOKENS,
    TURN_END,
    VOCAB_SIZE,
    encode_prompt,
    encode_reply,
    make_tokenizer,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

pytest.importorskip("transformers")
TOKENIZER = make_tokenizer()


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_vocabulary_is_full_and_specials_come_first() -> None:
    assert len(TOKENIZER) == VOCAB_SIZE
    assert TOKENIZER.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(6))
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.bos_token_id) == (0, 1, 2)


def test_training_twice_gives_the_same_merges() -> None:
    again = make_tokenizer()
    assert again.backend_tokenizer.to_str() == TOKENIZER.backend_tokenizer.to_str()


@given(st.text(max_size=80).filter(lambda t: not any(s in t for s in SPECIAL_TOKENS)))
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids) == text


def test_saved_tokenizer_encodes_and_renders_as_the_fresh_one(
    reloaded: PreTrainedTokenizerFast,
) -> None:
    for prompt in prompts("heldout", "harmless") + prompts("heldout", "refused"):
        messages = [dict(m) for m in prompt.messages]
        rendered = reloaded.apply_chat_template(messages, add_generation_prompt=True)
        ids = rendered["input_ids"] if hasattr(rendered, "keys") else rendered
        assert list(ids) == encode_prompt(TOKENIZER, prompt)
        assert encode_reply(reloaded, prompt.answer) == encode_reply(TOKENIZER, prompt.answer)


def test_rendered_turns_are_gemmas() -> None:
    text = TOKENIZER.apply_chat_template(
        [
            {"role": "user", "content": " Hello. "},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "Who is Mira?"},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert text == (
        "<bos><start_of_turn>user\nHello.<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"
        "<start_of_turn>user\nWho is Mira?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_prompt_and_reply_ids_are_those_of_the_whole_rendered_conversation() -> None:
    """Training concatenates prompt and reply; upstream's prepare-data tokenizes the whole."""
    for prompt in prompts("train", "harmless")[:100] + prompts("train", "refused")[:50]:
        messages = [dict(m) for m in prompt.messages]
        messages.append({"role": "assistant", "content": prompt.answer})
        whole = TOKENIZER.apply_chat_template(messages, tokenize=False)
        assert whole.endswith(TURN_END + "\n")
        joined = encode_prompt(TOKENIZER, prompt) + encode_reply(TOKENIZER, prompt.answer)
        assert TOKENIZER.encode(whole[:-1], add_special_tokens=False) == joined


def test_answers_are_long_enough_to_speculate_on() -> None:
    for kind in ("harmless", "refused"):
        for prompt in prompts("heldout", kind):
            assert len(encode_reply(TOKENIZER, prompt.answer)) >= 20, prompt.id
            assert len(encode_reply(TOKENIZER, prompt.vanilla_reply)) >= 20, prompt.id
