"""Counting answers while they are written, and repairing what a kill left behind."""

import json

from hypothesis import given
from hypothesis import strategies as st

from recipes.responses import Responses, count_lines, drop_torn_tail


def line(conversation: str, tokens: int, reason: str = "stop") -> bytes:
    row = {
        "primary_id": conversation,
        "loss_mask": [0, 0] + [1] * tokens,
        "metadata": {"finish_reason": reason},
        "text": "a\u2028b",
    }
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def test_reads_on_as_the_file_grows(tmp_path):
    path = tmp_path / "r.jsonl"
    responses = Responses(path)
    assert responses.read_on().summary()["rows"] == 0
    whole = line("a", 3) + line("a", 5, "length") + line("b", 4)
    for end in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:end])
        responses.read_on()
    path.write_bytes(whole)
    assert responses.read_on().summary() == {
        "answered": 2,
        "rows": 3,
        "cut_at_limit": 1,
        "answer_tokens": {"total": 12, "median": 4, "longest": 5},
    }


@given(st.lists(st.integers(0, 200_000), max_size=4), st.integers(0, 200_000))
def test_a_torn_tail_goes_and_whole_lines_stay(tmp_path_factory, sizes, torn):
    path = tmp_path_factory.mktemp("torn") / "r.jsonl"
    whole = b"".join(b"x" * size + b"\n" for size in sizes)
    path.write_bytes(whole + b"y" * torn)
    drop_torn_tail(path)
    assert path.read_bytes() == whole
    assert count_lines(path) == len(sizes)


def test_nothing_to_repair_is_no_error(tmp_path):
    drop_torn_tail(tmp_path / "absent")
    assert count_lines(tmp_path / "absent") == 0
