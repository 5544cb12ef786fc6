"""The exit code tells whether the run did what it was for."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import typer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from speculators.cli.regenerate_responses import regenerate_responses


# include: _chat_server.py


def test_a_run_in_which_everything_failed_exits_1(regenerate, server):
    server.behaviour = lambda request, count: "refuse"

    assert regenerate() == 1


def test_a_run_in_which_nothing_failed_exits_0(regenerate):
    assert regenerate() == 0


def test_what_is_tolerated_can_be_set(regenerate, server):
    server.behaviour = lambda request, count: "refuse" if count == 1 else "answer"

    assert regenerate(max_error_rate=0.2) == 0


def test_above_it_the_run_fails_and_keeps_what_was_answered(regenerate, server):
    server.behaviour = lambda request, count: "refuse" if count == 1 else "answer"

    assert regenerate(max_error_rate=0.1) == 1

    assert sorted(rows_of(regenerate.outfile)) == ALL_ROWS[1:]
    assert regenerate(resume=True) == 0
    assert sorted(rows_of(regenerate.outfile)) == ALL_ROWS


def test_a_resume_that_asks_only_what_always_fails_counts_the_rest(regenerate, server):
    server.behaviour = lambda request, count: (
        "refuse" if request["messages"][0]["content"] == "question 0" else "answer"
    )
    assert regenerate(max_error_rate=0.2) == 0

    assert regenerate(resume=True, max_error_rate=0.2) == 0
    assert regenerate(resume=True, max_error_rate=0.1) == 1
