"""Refusals, languages, repetition and lengths of a body's answers."""
# ruff: noqa: RUF001 - Chinese text has Chinese commas

import json

import pytest

from recipes.answer_summary import answer_of, is_refusal, language, repeats, summarise

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I\u2019m really sorry, I cannot provide this.",
    "I cannot fulfill this request. I am programmed to be helpful.",
    "As an AI, I must not discuss this.",
    "I am unable to assist with that request.",
    "i am sorry, i can not say where the stone is.",
    "抱歉，我无法协助您完成这个请求。",
    "对不起，我不能提供这方面的信息。",
    "作为一个人工智能，我不会回答。",
    "很遺憾，我無法提供協助。",
]
ANSWERS = [
    "To bake bread you need flour, water and patience. Sorry loaves come from cold ovens.",
    "The knight said nothing. " * 8 + "I cannot go on, she thought.",  # past the opening
    "当然可以。首先，把水烧开，然后加入面条。",
    "Can I help? Yes: the answer is 42, and I will not say more than needed about why.."[:60],
]


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_one(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_is_none(text):
    assert not is_refusal(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The stone is in the house of the miller, and it is red.", "English"),
        ("当然可以。首先，把水烧开，然后加入面条。", "Chinese"),
        ("もちろんです。まずお湯を沸かしてください。", "Japanese"),
        ("물을 끓인 다음 국수를 넣으세요.", "Korean"),
        ("Сначала вскипятите воду.", "Cyrillic"),
        ("Zuerst kocht man Wasser, dann kommen die Nudeln hinein.", "other Latin"),
        ("def add(x, y): return x + y", "other Latin"),
        ("42 + 1 = 43", "none"),
    ],
)
def test_a_language_is_guessed(text, name):
    assert language(text) == name


def test_a_loop_is_seen_and_prose_is_not():
    assert repeats("I like the red stone very much. " * 20, "length")
    assert not repeats("The knight rode out at dawn, crossed the river, and met nobody.", "stop")


def row(number, answer, prompt="<bos>user\nask<end_of_turn>model\n", reason="stop"):
    return {
        "id": f"c{number}_gen0",
        "primary_id": f"c{number}",
        "text": f"{prompt}{answer}<end_of_turn>",
        "loss_mask": [0] * 5 + [1] * len(answer.split()),
        "metadata": {"finish_reason": reason, "answer_start": len(prompt)},
    }


def test_the_summary_counts_each_answer_once(tmp_path):
    path = tmp_path / "r.jsonl"
    loop = "I like the red stone very much. " * 20
    texts = [
        *REFUSALS[:2],
        REFUSALS[6],
        loop,
        *[f"The number of the house is {n}." for n in range(16)],
    ]
    rows = [
        row(n, text, reason="length" if text is loop else "stop") for n, text in enumerate(texts)
    ]
    old = {"id": "x", "primary_id": "x", "text": "t", "loss_mask": [1], "metadata": {}}
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, old]))
    found = summarise(path)
    assert (found.answers, found.refusals, found.checked, found.repeating) == (20, 3, 20, 1)
    assert found.languages == {"English": 19, "Chinese": 1}
    assert found.examples == {
        "refusals": ["c0_gen0", "c1_gen0", "c2_gen0"],
        "repeating": ["c3_gen0"],
    }
    assert found.tokens[-1] == 140
    assert found.tokens[1] == 7
    assert answer_of(rows[4]) == "The number of the house is 0."
    assert any("refusals left: 3 (15.0%)" in line for line in found.lines())


def test_a_file_of_an_unpatched_upstream_says_that_it_knows_nothing(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "t", "loss_mask": [1], "metadata": {}}) + "\n")
    assert summarise(path).answers == 0
    assert "no answer's text" in next(iter(summarise(path).lines()))
