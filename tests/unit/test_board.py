"""Turns go to the server with the least to do, over processes, and come back with a killed one."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from speculators_patches.board import Board

URLS = ("http://a", "http://b", "http://c")


class Turns(RuleBasedStateMachine):
    """Against a model in memory: counts, and who is out; several boards are several processes."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.boards = [Board(URLS, Path(self.folder.name)) for _ in range(2)]
        self.open: list[tuple[contextlib.ExitStack, str]] = []
        self.out: set[str] = set()

    def counts(self) -> dict[str, int]:
        return {url: sum(one == url for _, one in self.open) for url in URLS}

    @rule(which=st.integers(0, 1))
    def ask(self, which: int) -> None:
        before, stack = self.counts(), contextlib.ExitStack()
        url = stack.enter_context(self.boards[which].turn())
        ready = set(URLS) - self.out or set(URLS)
        assert url in ready
        assert before[url] == min(before[one] for one in ready)
        self.open.append((stack, url))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        stack, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        stack.close()

    @rule(url=st.sampled_from(URLS), which=st.integers(0, 1))
    def take_out(self, url: str, which: int) -> None:
        assert self.boards[which].take_out(url) == (url not in self.out)
        self.out.add(url)

    @rule(url=st.sampled_from(URLS), which=st.integers(0, 1))
    def put_back(self, url: str, which: int) -> None:
        assert self.boards[which].put_back(url) == (url in self.out)
        self.out.discard(url)

    @invariant()
    def all_see_the_same(self) -> None:
        for board in self.boards:
            assert board.busy() == self.counts()
            assert {url for url in URLS if board.is_out(url)} == self.out

    def teardown(self) -> None:
        for stack, _ in self.open:
            stack.close()
        self.folder.cleanup()


TestTurns = Turns.TestCase
TestTurns.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


def test_one_after_the_other_they_take_turns(tmp_path: Path) -> None:
    board, found = Board(URLS[:2], tmp_path), []
    for _ in range(4):
        with board.turn() as url:
            found.append(url)
    assert found[0] != found[1]
    assert found[:2] == found[2:]


_HOLD = """
import sys, time
from pathlib import Path
from speculators_patches.board import Board
with Board(sys.argv[2:], Path(sys.argv[1])).turn():
    print("asked", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_gives_its_turn_back(tmp_path: Path) -> None:
    board = Board(URLS, tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path), *URLS], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "asked\n"
    assert sum(board.busy().values()) == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    deadline = time.monotonic() + 10
    while sum(board.busy().values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_only_one_looks_after_a_server_that_is_out(tmp_path: Path) -> None:
    one, other = Board(URLS, tmp_path), Board(URLS, tmp_path)
    with one.probing("http://a") as mine, other.probing("http://a") as theirs:
        assert (mine, theirs) == (True, False)
        with other.probing("http://b") as another:
            assert another
    with other.probing("http://a") as theirs:
        assert theirs


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Board(URLS, tmp_path / "file")
