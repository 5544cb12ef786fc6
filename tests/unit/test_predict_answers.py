"""The folder of answers: resumed, torn, and of another body."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.client import BenchError
from benchmarks.predict.answers import INDEX, Answer, Collection, Wanted
from benchmarks.predict.drafting import config_of
from benchmarks.prompts import WorkloadPrompt

WANTED = Wanted("body", (1, 2, 4), 8, 96, 0, {})
PROMPTS = [
    WorkloadPrompt(f"p{k}", "w", "short", False, ({"role": "user", "content": "hi"},))
    for k in range(3)
]


def answer(prompt: str, temperature: float, states: str) -> Answer:
    return Answer(prompt, "w", temperature, 0, (1, 2, 3, 4), 1, 3, states)


def test_what_is_missing_and_once_at_temperature_0(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps(asdict(answer("p0", 0.7, "0"))) + "\n")
    found = Collection(tmp_path, WANTED)
    missing = [(p.id, t, k) for p, t, k in found.missing(PROMPTS, (0.0, 0.7), 2)]
    assert missing.count(("p0", 0.7, 0)) == 0
    assert len(missing) == 3 + 2 * 3 - 1


def test_half_a_line_costs_one_answer(tmp_path: Path) -> None:
    whole = json.dumps(asdict(answer("p0", 0.0, "000000.safetensors")))
    (tmp_path / INDEX).write_text(whole + "\n" + whole[:20])
    assert [a.prompt_id for a in Collection(tmp_path, WANTED).answers] == ["p0"]


def test_another_body_or_other_layers_are_refused(tmp_path: Path) -> None:
    Collection(tmp_path, WANTED)
    Collection(tmp_path, WANTED)
    with pytest.raises(BenchError, match="another body, layers"):
        Collection(tmp_path, replace(WANTED, body="other", layers=(1, 4)))


def test_a_drafter_that_is_nowhere_is_named_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="neither a folder here nor to be had") as told:
        config_of(str(tmp_path / "gone"))
    assert "\n" not in str(told.value)


def server(states: Path, asked: list[dict[str, Any]] | None = None) -> httpx.MockTransport:
    """Answers as vLLM does, three tokens a request, and writes an empty file of states."""
    count = iter(range(1000))

    def reply(request: httpx.Request) -> httpx.Response:
        if asked is not None:
            asked.append(json.loads(request.content))
        file = states / f"{next(count)}.safetensors"
        file.write_bytes(b"states")
        return httpx.Response(
            200,
            json={
                "prompt_token_ids": [7, 8],
                "choices": [{"token_ids": [1, 2, 3]}],
                "kv_transfer_params": {"hidden_states_path": str(file)},
            },
        )

    return httpx.MockTransport(reply)


def test_no_two_answers_share_their_random_numbers(tmp_path: Path) -> None:
    """Else an interval over prompts is one over a single sample; and what goes on has its own."""
    (tmp_path / "states").mkdir()
    asked: list[dict[str, Any]] = []
    found = Collection(tmp_path / "answers", WANTED)
    with httpx.Client(transport=server(tmp_path / "states", asked), base_url="http://x") as http:
        for prompt in PROMPTS:
            for repeat in range(2):
                found._one(http, "m", prompt, 0.7, repeat)
    seeds = [a["seed"] for a in asked if "seed" in a]
    assert len(seeds) == len(set(seeds)) == 2 * 3 * 2
    with pytest.raises(BenchError, match="another seeds"):
        Collection(tmp_path / "answers", replace(WANTED, seeds="one for all"))


def test_after_a_kill_no_states_are_overwritten(tmp_path: Path) -> None:
    """A torn line, two more answers, and a new process: every answer keeps its own file."""
    states = tmp_path / "states"
    states.mkdir()
    folder = tmp_path / "answers"
    found = Collection(folder, WANTED)
    with httpx.Client(transport=server(states), base_url="http://x") as http:

        def take(into: Collection, prompt: WorkloadPrompt) -> Answer:
            return into._one(http, "m", prompt, 0.0, 0)

        first = take(found, PROMPTS[0])
        (folder / INDEX).write_text(json.dumps(asdict(first))[:30])
        again = Collection(folder, WANTED)
        assert again.answers == []
        second = take(again, PROMPTS[1])
        assert second.states != first.states
        assert second.ids == (7, 8, 1, 2, 3, 1, 2, 3)
        assert (second.start, second.end) == (2, 5)
    assert not list(states.glob("*")), "the server's own files are taken or removed"
