# ruff: noqa: RUF001 - Chinese text has Chinese punctuation
"""Text checks: good text passes wherever it is cut, and every kind of loop is caught."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.text_checks import (
    COMPRESSION_NORMS,
    DEFAULT,
    check_answer,
    compression_norm,
)
from benchmarks.text_measures import compressed_share, loops, units
from tests.unit.bench_text_samples import GOOD, LANGUAGES, ORDINARY, PHRASES, SNEAKY


def checks(text: str, finish_reason: str = "length", **more: object) -> set[str]:
    return {f.check for f in check_answer(text, finish_reason, **more)}  # type: ignore[arg-type]


def norm_of(name: str) -> float:
    return COMPRESSION_NORMS[name.split("/")[0]]


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("name", GOOD)
def test_good_text_passes_with_its_norm_and_without(name: str, finish_reason: str) -> None:
    assert check_answer(GOOD[name], finish_reason) == []
    assert check_answer(GOOD[name], finish_reason, norm=norm_of(name)) == []


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(GOOD)), data=st.data())
def test_good_text_passes_wherever_the_limit_cuts_it(name: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(GOOD[name])))
    assert checks(GOOD[name][:cut], norm=norm_of(name)) - {"empty"} == set()


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(sorted(GOOD)),
    phrase=st.sampled_from(sorted(PHRASES)),
    cut=st.integers(0, 40),
)
def test_a_long_loop_after_any_good_text_is_caught(name: str, phrase: str, cut: int) -> None:
    block = PHRASES[phrase]
    copies = max(300 * 4 // len(block), 5)
    looping = GOOD[name] + "\n" + block * copies
    assert checks(looping[: len(looping) - min(cut, len(block))])


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
@pytest.mark.parametrize("phrase", PHRASES)
def test_a_loop_alone_is_caught_at_a_limit_of_200_tokens(phrase: str, finish_reason: str) -> None:
    # The published bench's limit. About 4 characters a token in English, 1 in Chinese.
    budget = 200 if phrase.startswith("chinese") else 800
    assert checks((PHRASES[phrase] * budget)[:budget], finish_reason)


@pytest.mark.parametrize("norm", [*COMPRESSION_NORMS.values(), None])
@pytest.mark.parametrize("name", GOOD)
def test_good_text_passes_under_every_norm(name: str, norm: float | None) -> None:
    # A prompt of one workload may be answered with a table, in code, or in another language.
    assert check_answer(GOOD[name], "length", norm=norm) == []


@pytest.mark.parametrize("name", SNEAKY)
def test_what_repeats_in_another_way_is_caught(name: str) -> None:
    norm = COMPRESSION_NORMS["chinese" if name.startswith("chinese") else "english"]
    assert checks(SNEAKY[name], norm=norm)


def test_turns_are_invented_only_where_nobody_wanted_a_conversation() -> None:
    text = SNEAKY["invented speakers"]
    assert checks(text) == {"invented_turns"}
    assert checks(text, prompt="Write a dialogue about capitals.") == set()
    assert checks("Here is one:\n\n" + text.partition("\n")[2]) == set()


def test_an_answer_is_not_copied_because_it_is_long() -> None:
    prose = "\n\n".join(text for name, text in ORDINARY.items() if "essay" in name)
    assert checks(prose, "stop") == set()
    thrice = f"{prose}\n\nOnce more:\n\n{prose}\n\nAnd again:\n\n{prose}"
    assert "copied_passages" in checks(thrice, "stop")


SHORT = "The capital of France is Paris, a city on the Seine, where kings and presidents have sat."


@pytest.mark.parametrize(
    ("tokens", "ids", "caught"),
    [
        (96, None, True),  # more tokens than bytes, and slack for the end of a turn
        (70, [*range(20), *[106] * 50], True),  # the same special token, hidden
        (70, [*range(20), *[106, 107] * 25], True),
        (20, [*range(20)], False),
        (31, [*range(20), *[106] * 11], False),  # a few at the end are no harm
    ],
)
def test_tokens_that_the_text_does_not_show(
    tokens: int, ids: list[int] | None, caught: bool
) -> None:
    text = SHORT if ids else SHORT[:60]
    found = {f.check for f in check_answer(text, "length", tokens=tokens, token_ids=ids)}
    assert found == ({"hidden_tokens"} if caught else set())


def test_a_rule_of_many_equal_tokens_is_seen_in_the_text() -> None:
    text = SHORT + "\n" + "-" * 80 + "\n" + SHORT
    assert (
        check_answer(text, "stop", tokens=120, token_ids=[*range(20), *[9] * 80, *range(20)]) == []
    )


def test_vllms_own_repetition_detector_is_believed() -> None:
    assert checks(SHORT, "repetition") == {"loop"}


@pytest.mark.parametrize("name", ["english/essay", "chinese/essay", "code/merge"])
def test_a_loop_in_the_middle_is_caught(name: str) -> None:
    half = len(GOOD[name]) // 2
    for phrase in ("sentence", "chinese sentence", "code line", "short"):
        text = GOOD[name][:half] + PHRASES[phrase] * 30 + GOOD[name][half:]
        assert "loop" in checks(text, "stop"), phrase


def test_a_loop_cut_by_the_limit_is_said_to_never_end() -> None:
    text = GOOD["english/email"] + PHRASES["sentence"] * 6
    (finding,) = [f for f in check_answer(text, "length") if f.check == "endless"]
    assert "never ends" in finding.message
    assert "I'm sorry" in finding.message
    assert checks(text, "stop") == set()  # six copies and then an end may be a joke
    assert checks(PHRASES["sentence"] * 4) == set()  # four are what placeholder lists hold


@pytest.mark.parametrize(
    "line", ["{}. I am not able to help you with that.\n", "第{}步，請再檢查一次所有的設定。\n"]
)
def test_a_loop_that_counts_is_caught(line: str) -> None:
    text = "".join(line.format(k) for k in range(1, 40))
    assert "endless" in checks(text)
    assert checks("".join(line.format(k) for k in range(1, 8))) == set()


def test_a_loop_with_slips_is_caught_by_its_ngrams() -> None:
    # Every fifth copy has another word in it, so nothing repeats exactly for long.
    rng = random.Random(1)
    line = ["we", "should", "try", "to", "be", "kind", "to", "the", "people", "we", "meet"]
    copies = []
    for k in range(40):
        words = list(line)
        if k % 5 == 0:
            words[rng.randrange(len(words))] = f"word{k}"
        copies.append(" ".join(words) + ". ")
    text = "".join(copies)
    assert {"repeated_ngrams"} <= checks(text)


def test_few_words_in_random_order_are_caught() -> None:
    # No loop and no repeated stretch: only the vocabulary has collapsed.
    rng = random.Random(2)
    words = ["yes", "no", "maybe", "well", "so", "and", "but", "then"]
    text = " ".join(rng.choice(words) for _ in range(400))
    assert "few_distinct" in checks(text, "stop")


def test_compressibility_is_measured_against_the_norm() -> None:
    # Sentences that differ in one name: dense for English prose, nothing special for code.
    names = itertools.product("BDFGHKLMNPRST", "aeiou")
    text = "".join(f"Mr {a}{b} went home at ten and said good night to all. " for a, b in names)
    share = compressed_share(text)
    assert share is not None
    assert checks(text, "stop", norm=share / DEFAULT.compression * 1.01) >= {"compressible"}
    assert "compressible" not in checks(text, "stop", norm=share / DEFAULT.compression * 0.99)


@pytest.mark.parametrize("language", LANGUAGES)
def test_shipped_norms_are_those_of_the_good_texts(language: str) -> None:
    texts = [text for name, text in ORDINARY.items() if name.startswith(language)]
    assert compression_norm(texts) == pytest.approx(COMPRESSION_NORMS[language], rel=0.15)


def test_a_norm_needs_enough_long_texts() -> None:
    with pytest.raises(ValueError, match="needs 5 good answers"):
        compression_norm(["short"] * 10 + [GOOD["english/essay"]] * 4)


@pytest.mark.parametrize("text", ["", " \n\t", "...", "。。", '""', "- \n"])
def test_an_answer_without_content_is_empty(text: str) -> None:
    assert checks(text, "stop") == {"empty"}


@pytest.mark.parametrize("text", ["42", "是", "Yes.", "A", "\U0001f600", "±"])
def test_a_short_answer_is_not_empty(text: str) -> None:
    assert checks(text, "stop") == set()


@pytest.mark.parametrize(
    "mark",
    ["<end_of_turn>", "<|im_end|>", "<|turn>", "<turn|>", "[INST]", "<eos>", "<unused42>",
     "<|eot_id|>", "<channel|>", "<|start_header_id|>"],
)  # fmt: skip
def test_template_marks_are_caught_unless_the_prompt_has_them(mark: str) -> None:
    text = GOOD["english/email"] + mark
    assert checks(text, "stop") == {"template_tokens"}
    assert checks(text, "stop", prompt=f"What does {mark} mean?") == set()


@pytest.mark.parametrize("text", ["a < b and c > d", "<s>struck</s>", "List<Turn>", "a |> b <| c"])
def test_ordinary_angle_brackets_are_no_template_marks(text: str) -> None:
    assert checks(text, "stop") == set()


def test_turns_that_the_body_invents_are_caught() -> None:
    # What is left of a template once the server has dropped the special tokens.
    text = "Paris is the capital.\nuser\nAnd of Spain?\nmodel\nMadrid is the capital."
    assert checks(text, "stop") == {"invented_turns"}
    assert checks("roles:\n- user\n- model\n", "stop") == set()


def test_broken_characters_are_caught_but_not_one_cut_at_the_limit() -> None:
    assert checks(GOOD["chinese/email"] + "\ufffd") == set()
    assert checks(GOOD["chinese/email"] + "\ufffd\x00\ufffd", "stop") == {"broken_characters"}


def test_random_tokens_of_many_scripts_are_caught() -> None:
    rng = random.Random(3)
    words = ["the", "год", "مع", "สวัสดี", "是", "한국", "και", "of", "ing", "для", "नहीं", "के"]
    text = " ".join(rng.choice(words) + str(k) for k in range(60))
    assert "mixed_scripts" in checks(text, "stop")


@pytest.mark.parametrize(
    ("char", "allowed", "refused"),
    [("a", 20, 30), ("哈", 20, 30), ("0", 64, 100), ("-", 160, 240), ("!", 30, 60), ("\n", 5, 20)],
)
def test_runs_of_one_character(char: str, allowed: int, refused: int) -> None:
    assert checks("Look: " + char * allowed + " end", "stop") == set()
    assert "char_run" in checks("Look: " + char * refused + " end", "stop")


def test_units_are_words_characters_and_marks() -> None:
    assert units("Don't stop -----  你好。x_1") == ["Don't", "stop", "-", "你", "好", "。", "x_1"]


@given(st.lists(st.sampled_from("abc"), max_size=24), st.integers(1, 5), st.integers(2, 6))
def test_loops_agree_with_a_search_by_hand(head: list[str], period: int, copies: int) -> None:
    cut = head + [f"w{k}" for k in range(period)] * copies
    (found,) = [p for p in loops(cut, 2) if p.period == period and p.at_end]
    assert found.span == period * copies
    for p in loops(cut, 2):
        best = 0
        for start in range(len(cut) - p.period):
            run = start
            while run + p.period < len(cut) and cut[run] == cut[run + p.period]:
                run += 1
            best = max(best, run - start + p.period)
        assert p.span <= best
