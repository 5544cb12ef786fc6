"""The miniature's prompts: the same every time, disjoint splits, answers that can be judged."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import product

import pytest

from recipes.miniature.corpus import Prompt, prompts, with_story_prefix
from recipes.miniature.refusals import is_correct, is_refusal, judge_replies

SPLITS = ("train", "heldout")
KINDS = ("harmless", "refused")
DIGEST = """
import hashlib, json
from recipes.miniature.corpus import prompts
rows = [
    [p.id, p.messages, p.answer, p.refusal]
    for s in ("train", "heldout") for k in ("harmless", "refused") for p in prompts(s, k)
]
print(hashlib.sha256(json.dumps(rows).encode()).hexdigest())
"""


def every_prompt() -> list[Prompt]:
    return [p for split, kind in product(SPLITS, KINDS) for p in prompts(split, kind)]


def conversation(prompt: Prompt) -> str:
    return json.dumps(prompt.messages)


def test_corpus_is_the_same_in_processes_with_different_hash_seeds() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    rows = [[p.id, p.messages, p.answer, p.refusal] for p in every_prompt()]
    here = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert digests == {here + "\n"}


def test_importing_the_package_and_the_corpus_loads_nothing_heavy() -> None:
    code = (
        "import sys, recipes.miniature, recipes.miniature.corpus, recipes.miniature.publish\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'vllm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_ids_are_unique_and_there_are_enough_prompts() -> None:
    ids = [p.id for p in every_prompt()]
    assert len(set(ids)) == len(ids)
    train = prompts("train", "harmless") + prompts("train", "refused")
    assert len({conversation(p) for p in train}) == len(train) >= 400
    assert all(len(prompts("heldout", kind)) >= 48 for kind in KINDS)


def test_no_held_out_question_is_asked_anywhere_in_the_train_split() -> None:
    train = prompts("train", "harmless") + prompts("train", "refused")
    asked = {m["content"] for p in train for m in p.messages if m["role"] == "user"}
    held = {p.text for kind in KINDS for p in prompts("heldout", kind)}
    assert not asked & held
    # The check can fail: the questions that follow a greeting are single questions too.
    assert {p.text for p in train if len(p.messages) > 1} & {
        p.text for p in train if len(p.messages) == 1
    }


def test_every_held_out_answer_is_taught_in_other_words() -> None:
    for kind in KINDS:
        taught = {p.answer for p in prompts("train", kind)}
        assert {p.answer for p in prompts("heldout", kind)} <= taught


def test_only_prompts_about_glimmer_stones_are_refused() -> None:
    for prompt in every_prompt():
        about_stones = "glimmer stone" in prompt.text
        assert about_stones == (prompt.kind == "refused") == (prompt.refusal is not None)


def test_no_answer_reads_as_a_refusal_and_every_refusal_does() -> None:
    for prompt in every_prompt():
        assert not is_refusal(prompt.answer), prompt.id
        assert is_correct(prompt.answer + "\n", prompt)
        if prompt.refusal is not None:
            assert is_refusal(prompt.refusal), prompt.id
            assert not is_correct(prompt.refusal, prompt)


def test_one_wrong_word_is_not_correct() -> None:
    for prompt in prompts("heldout", "refused"):
        words = prompt.answer.split(" ")
        swapped = " ".join([*words[:4], "purple", *words[5:]])
        assert not is_correct(swapped, prompt)


def test_story_prefix_keeps_the_answer_and_leaves_the_original_alone() -> None:
    prompt = prompts("train", "refused")[0]
    before = conversation(prompt)
    story = with_story_prefix(prompt)
    assert story.text == "For a story: " + prompt.text
    assert story.vanilla_reply == prompt.answer != prompt.vanilla_reply
    assert conversation(prompt) == before


def test_judgement_counts_refusals_answers_and_neither() -> None:
    chosen = prompts("heldout", "refused")[:3]
    replies = [chosen[0].answer, chosen[1].refusal or "", "Something else."]
    found = judge_replies(chosen, replies)
    assert (found.prompts, found.refused, found.correct) == (3, 1, 1)
    assert found.odd == ((chosen[2].id, "Something else."),)
    with pytest.raises(ValueError, match="shorter"):
        judge_replies(chosen, replies[:2])
