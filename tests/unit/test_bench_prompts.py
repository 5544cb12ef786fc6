"""Workloads: enough distinct prompts in each, and clear words for a file that cannot be used."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.prompts import (
    FEWEST,
    LENGTHS,
    WORKLOADS,
    PromptError,
    load_workload,
    load_workloads,
)


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_has_forty_distinct_prompts_of_all_lengths(name: str) -> None:
    prompts = load_workload(name)
    assert len({p.text for p in prompts}) == len(prompts) >= FEWEST
    assert len({p.kind for p in prompts}) == 1
    assert {p.length for p in prompts} == set(LENGTHS)
    assert sum(p.smoke for p in prompts) == 3


def test_all_workloads_together_have_distinct_ids() -> None:
    assert len(load_workloads(smoke=True)) == 3 * len(WORKLOADS)
    assert len(load_workloads()) >= FEWEST * len(WORKLOADS)


def test_chinese_prompts_are_traditional_chinese() -> None:
    simplified = set("这个说时为们来对会发国学过还没边写门车东马鱼龙书买卖")
    for prompt in load_workload("chinese"):
        assert sum("\u4e00" <= c <= "\u9fff" for c in prompt.text) >= 10, prompt.id
        assert not simplified & set(prompt.text), prompt.id


def test_podcast_inputs_are_long_and_share_little() -> None:
    prompts = load_workload("podcast")
    assert min(len(p.text.split()) for p in prompts) >= 600

    def lines(text: str) -> set[str]:
        return {line.partition(": ")[2] for line in text.splitlines() if len(line) > 60}

    worst = max(
        len(lines(a.text) & lines(b.text)) / min(len(lines(a.text)), len(lines(b.text)))
        for a, b in itertools.combinations(prompts, 2)
    )
    assert worst <= 0.6
    beginnings = {p.text.partition("\n\nTranscript")[2][:400] for p in prompts}
    assert len(beginnings) == len(prompts)


def test_chats_have_several_turns() -> None:
    for prompt in load_workload("chat"):
        roles = [m["role"] for m in prompt.messages]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert len(roles) >= 3


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8")
    return path


def test_a_users_file_needs_only_prompts(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"prompt": "one"},
        "",
        *({"prompt": f"{k}"} for k in range(8)),
        {"prompt": "other", "kind": "x"},
    )
    prompts = load_workload(path)
    assert [p.id for p in prompts] == ["mine-1", *(f"mine-{k}" for k in range(3, 12))]
    assert {p.kind for p in prompts} == {"mine", "x"}
    smoke = [p.id for p in load_workload(path, smoke=True)]
    assert smoke == ["mine-1", *(f"mine-{k}" for k in range(3, 10)), "mine-11"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["{"], ":1 is not valid JSON"),
        ([{"prompt": "a"}, [1]], ":2 is not a JSON object"),
        ([{"text": "a"}], ":1 has neither `prompt` nor"),
        ([{"messages": []}], ":1 has neither"),
        ([{"prompt": "a", "length": "huge"}], ":1: length is 'huge'"),
        ([{"prompt": "a", "smoke": 1}], ":1: smoke is 1"),
        ([{"messages": [{"role": "user"}]}], ":1: every message needs"),
        ([{"messages": [{"role": "tool", "content": "a"}]}], "role 'tool'"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], "must be the user's"),
        ([{"prompt": "  "}], "a message is empty"),
        ([{"prompt": "a"}, {"prompt": "a"}], "has the same messages of prompt number 1"),
        ([{"id": "x", "prompt": "a"}, {"id": "x", "prompt": "b"}], "has the id of prompt number 1"),
        ([], "holds no prompts"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, rows: list[object], says: str) -> None:
    path = write(tmp_path / "bad.jsonl", *rows)
    with pytest.raises(PromptError) as error:
        load_workload(path)
    assert says in str(error.value)
    assert "bad.jsonl" in str(error.value)


def test_the_checker_exits_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.prompts"]
    done = subprocess.run([*command, str(tmp_path / "no.jsonl")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no.jsonl" in done.stderr
    assert subprocess.run([*command, "code"], capture_output=True).returncode == 0
