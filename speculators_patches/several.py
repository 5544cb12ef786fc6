"""Several servers of hidden states as one `Producer`: who is asked next, who is out, who is back.

    several = Several(urls, wait_s)
    with several.turn(...) as url:   # the one with the least to do
        ...                          # ask it
    several.wait(...)                # after a failure: returns at once while another one is up

A server that failed is out for every process of this machine until it answers a request of the size
of a sample again; one process looks after it, in a thread, so that no sample waits for the look.
Whose fault a failure is, and how long all of them may be gone, is `producer`'s.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from speculators_patches.board import Board
from speculators_patches.producer import Producer

logger = logging.getLogger("speculators")

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0

_Discard = Callable[[str], None]


def addresses(listed: str) -> tuple[str, ...]:
    """The addresses in a list with commas, in order, each once; with or without `/v1`."""
    return tuple(dict.fromkeys(part.strip() for part in listed.split(",") if part.strip()))


def producer_at(endpoint: str, wait_s: float) -> Producer:
    """What waits for the server at `endpoint`, or for those at several, separated by commas."""
    urls = addresses(endpoint)
    return Several(urls, wait_s) if len(urls) > 1 else Producer(endpoint, wait_s)


class Several(Producer):
    """The servers at `urls`; else as `Producer`, which means all of them when it says gone."""

    def __init__(self, urls: Sequence[str], wait_s: float) -> None:
        super().__init__(urls[0], wait_s)
        self._each = {url: Producer(url, wait_s) for url in urls}
        self.url = ", ".join(one.url for one in self._each.values())
        self._board = Board(urls)
        self._asked = urls[0]
        self._any = False  # `problem` is asked about all of them, not about the last one
        self._began: float | None = None  # of the first failure without an answer after it
        self._probes: threading.Thread | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """See Producer."""
        return tuple(self._each)

    @property
    def asked(self) -> str:
        """See Producer."""
        return self._asked

    def answers(self, url: str, prompt: Sequence[int], discard: _Discard) -> bool:
        """See Producer."""
        return self._each[url].answers(self._each[url].url, prompt, discard)

    @contextlib.contextmanager
    def turn(self, prompt: Sequence[int], discard: _Discard) -> Iterator[str]:
        """The address for the next request, which is for `prompt` (token ids)."""
        if any(self._board.is_out(url) for url in self._each):
            self._look_after(prompt, discard)  # it may be out since an earlier run
        with self._board.turn() as url:
            self._asked = url
            yield url

    def answered(self, sample: dict[str, Any]) -> None:
        """See Producer; it was the last one asked that answered."""
        super().answered(sample)
        self._began = None
        if self._board.put_back(self._asked):
            logger.warning(f"{self._each[self._asked].url} gives hidden states again")

    def problem(self, prompt: Sequence[int], discard: _Discard) -> str | None:
        """Why the last server that was asked can't be asked now; in `wait`, why none can."""
        if not self._any:
            return self._each[self._asked].problem(prompt, discard)
        problems = []
        for url, one in self._each.items():
            problem = one.problem(prompt, discard)
            if problem is None:
                self._board.put_back(url)
                return None
            problems.append(f"{one.url}: {problem}")
        return "; ".join(problems)

    def wait(self, why: str, prompt: Sequence[int], folder: Path | None, discard: _Discard) -> None:
        """The last one asked is out; returns when there is one to ask, at once if another is up.

        Raises:
            Gone: none has given hidden states for `wait_s`.
        """
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        if self._board.take_out(self._asked):
            name = self._each[self._asked].url
            logger.warning(f"no hidden states from {name}: {why}. It is out until it answers")
        if self._others_are_up() and self.has_no_room(prompt, folder) is None:
            self._look_after(prompt, discard)
            if now - self._began < self.wait_s:
                return
            self._since = self._began  # they answer everything but this sample
        self._any = True
        try:
            super().wait(why, prompt, folder, discard)
        finally:
            self._any = False
        self._look_after(prompt, discard)

    def not_to_blame(self) -> None:
        """See Producer."""
        super().not_to_blame()
        self._began = None

    def _others_are_up(self) -> bool:
        return not all(self._board.is_out(url) for url in self._each)

    # ---- the thread that looks whether those that are out are back ----

    def _look_after(self, prompt: Sequence[int], discard: _Discard) -> None:
        if self._probes is None or not self._probes.is_alive():
            probe = [prompt[0]] * len(prompt)
            self._probes = threading.Thread(
                target=self._probe, args=(probe, discard), name="producers", daemon=True
            )
            self._probes.start()

    def _probe(self, prompt: Sequence[int], discard: _Discard) -> None:
        pause = _FIRST_PAUSE_S
        while any(self._board.is_out(url) for url in self._each):
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)
            for url, one in self._each.items():
                if not self._board.is_out(url):
                    continue
                with self._board.probing(url) as mine:
                    back = mine and one.problem(prompt, discard) is None
                    if back and self._board.put_back(url):
                        logger.warning(f"{one.url} is up again and gets its share")
