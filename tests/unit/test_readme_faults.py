"""Every row of the README's table of faults names a test that exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = {"N1", "N2", "N3", "N6", "N7", "N9", "N11", "N16", "N17", "N18", "l", "o"}


def rows() -> list[list[str]]:
    table = (ROOT / "README.md").read_text("utf-8")
    table = table.partition("<!-- faults")[2].partition("<!-- end of faults -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") or line.startswith("|  ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_every_fault_of_the_issue_has_a_row() -> None:
    assert {row[0] for row in rows()} >= FAULTS


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[-1]}")
def test_a_row_says_what_happens_and_names_a_test(row: list[str]) -> None:
    assert len(row) == 4
    _, before, now, proof = row
    assert before.endswith(".")
    assert now.endswith(".")
    named = re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)`", proof)
    assert named is not None, f"{proof} is no test's name"
    tree = ast.parse((ROOT / named[1]).read_text("utf-8"))
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert named[2] in found
    assert named[2].startswith("test_")
