"""Counting answers while they are written."""

import json

from recipes.responses import Responses, count_lines


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


def test_lines_are_counted_and_an_absent_file_has_none(tmp_path):
    (tmp_path / "r").write_bytes(b"a\nb\nhalf")
    assert count_lines(tmp_path / "r") == 2
    assert count_lines(tmp_path / "absent") == 0
