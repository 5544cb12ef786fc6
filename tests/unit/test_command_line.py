"""Which Python command lines are rewritten for a patched child, and how."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches.command_line import REJOIN, is_this_python, rewrite

PYTHON = sys.executable


@pytest.mark.parametrize(
    ("flags", "program"),
    [
        ((), ("-m", "speculators.train", "--lr", "1")),
        (("-u",), ("-m", "pkg.mod")),
        (("-u", "-X", "dev", "-W", "ignore", "-I"), ("script.py", "-c", "not code")),
        (("-Wignore", "-Xdev", "-bB"), ("-c", "print(1)", "-m", "x")),
        (("--check-hash-based-pycs", "always"), ("script.py",)),
    ],
)
def test_flags_stay_and_the_program_follows_the_selection(
    flags: tuple[str, ...], program: tuple[str, ...]
) -> None:
    got = rewrite([PYTHON, *flags, *program], "SELECTION")
    assert got == [PYTHON, *flags, REJOIN, "SELECTION", *program]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-"],
        ["-V"],
        ["--version"],
        ["-m"],
        ["-mpkg"],
        ["-i", "-u"],
        ["-c", "from multiprocessing.resource_tracker import main;main(3)"],
        ["-c", "from multiprocessing.spawn import spawn_main; spawn_main(pipe_handle=3)"],
        ["-m", "pip", "install", "x"],
        ["-m", "speculators_patches", "run", "--module", "m"],
        [REJOIN, "SELECTION", "-m", "m"],
    ],
)
def test_these_pass_untouched(arguments: list[str]) -> None:
    command = [PYTHON, *arguments]
    assert rewrite(command, "SELECTION") is command


@pytest.mark.parametrize("command", ["python -m x", b"python", [b"python", b"-m"], ["ls", "-m"], 3])
def test_what_is_not_a_list_of_words_for_this_python_passes_untouched(command: object) -> None:
    assert rewrite(command, "SELECTION") is command


@given(st.lists(st.text(max_size=8), max_size=6))
def test_any_words_are_kept_in_order(words: list[str]) -> None:
    got = rewrite([PYTHON, *words], "SELECTION")
    assert [word for word in got if word not in (REJOIN, "SELECTION")] == [PYTHON, *words]


def test_a_bare_python_is_looked_up_in_the_child_s_path(tmp_path: Path) -> None:
    name = Path(PYTHON).name
    assert is_this_python(name, {"PATH": str(Path(PYTHON).parent)})
    assert not is_this_python(name, {"PATH": str(tmp_path)})


def test_another_environment_with_the_same_binary_is_not_ours(tmp_path: Path) -> None:
    other = tmp_path / "bin" / "python"
    other.parent.mkdir()
    other.symlink_to(Path(PYTHON).resolve())
    assert os.access(other, os.X_OK)
    assert not is_this_python(str(other))
