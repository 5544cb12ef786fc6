"""A killed regeneration goes on without losing or doubling a row."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from speculators.cli.regenerate_responses import regenerate_responses


# include: _chat_server.py


@pytest.mark.parametrize("cut", [3, 40, 200, 400, 700, 1000, 1500])
def test_cut_anywhere_it_goes_on_with_the_same_rows(regenerate, cut):
    assert regenerate() == 0
    whole = regenerate.outfile.read_bytes()
    assert sorted(rows_of(regenerate.outfile)) == ALL_ROWS
    regenerate.outfile.write_bytes(whole[:-cut])

    assert regenerate(resume=True) == 0

    assert sorted(rows_of(regenerate.outfile)) == ALL_ROWS


def test_a_whole_file_is_not_asked_again(regenerate, server):
    regenerate()
    before, asked = regenerate.outfile.read_bytes(), server.asked

    assert regenerate(resume=True) == 0

    assert server.asked == asked
    assert regenerate.outfile.read_bytes() == before


def test_rows_are_never_doubled(regenerate):
    regenerate()
    regenerate()

    assert sorted(rows_of(regenerate.outfile)) == ALL_ROWS


def test_rows_of_an_older_version_are_kept(regenerate):
    old = {"id": "c2_gen0", "primary_id": "c2", "metadata": {}, "input_ids": [1]}
    regenerate.outfile.write_text(json.dumps(old) + '\n{"id": "c3_gen0", "prim')

    regenerate(resume=True)

    rows = rows_of(regenerate.outfile)
    assert rows.count("c2_gen0") == 1
    assert rows.count("c3_gen0") == 1


def test_a_failing_conversation_leaves_no_row(regenerate, server):
    server.behaviour = lambda request, count: (
        "refuse" if len(request["messages"]) == 3 else "answer"
    )

    regenerate()

    assert sorted({row.partition("_")[0] for row in rows_of(regenerate.outfile)}) == [
        "c0",
        "c3",
    ]


def test_a_conversation_that_stands_in_the_data_twice_is_kept(regenerate, server):
    """Its rows lie next to each other, under the same ids."""
    prompts = regenerate.outfile.with_name("prompts.jsonl")
    lines = prompts.read_text().splitlines(keepends=True)
    prompts.write_text("".join([lines[2], lines[2], lines[1], lines[0], lines[0]]))
    regenerate()
    before, asked = regenerate.outfile.read_bytes(), server.asked
    assert before.count(b"c2_gen1") == 2

    assert regenerate(resume=True) == 0

    assert regenerate.outfile.read_bytes() == before
    assert server.asked == asked


def test_of_two_copies_only_the_torn_one_goes(regenerate):
    regenerate()
    lines = regenerate.outfile.read_bytes().splitlines(keepends=True)
    copy = [line for line in lines if b'"c2"' in line]
    regenerate.outfile.write_bytes(b"".join([*copy, *copy[:2], *lines]))

    regenerate(resume=True)

    expected = b"".join([*copy, *lines])
    assert regenerate.outfile.read_bytes() == expected


def test_a_whole_file_is_not_written_anew(regenerate, monkeypatch):
    regenerate()
    opened = []
    original = Path.open

    def noted(self, mode="r", *args, **kwargs):
        opened.append(mode)
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", noted)
    regenerate(resume=True)

    assert "rb" in opened
    assert not any("w" in mode for mode in opened)
