"""A server that never answers does not hold the run for ever."""

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


def test_a_silent_server_costs_its_conversations_only(regenerate, server):
    server.behaviour = lambda request, count: "silent" if count == 1 else "answer"

    began = time.monotonic()
    regenerate(request_timeout=1.0)

    assert time.monotonic() - began < 20
    assert sorted(rows_of(regenerate.outfile)) == ALL_ROWS[1:]


def test_it_is_asked_again(regenerate, server):
    server.behaviour = lambda request, count: "silent" if count == 1 else "answer"

    regenerate(request_timeout=1.0, max_retries=1)

    assert sorted(rows_of(regenerate.outfile)) == ALL_ROWS
