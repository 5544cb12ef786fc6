"""Waiting for a sample in a store that may be full, away for a while, or have lost the sample.

Nothing here knows Mooncake or upstream; `patches/mooncake_waits` does.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

_FIRST_POLL_S, _LONGEST_POLL_S = 0.001, 0.05
_LOOK_AT_PRODUCER_S = 1.0


class StoreAway(Exception):
    """The sample will not come: the store or its producer lost it. Asking again mends it."""


Status = Literal["stored", "absent", "away"]


@dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
        wait_s: how long the store may be away, or have no room for the sample.
        grace_s: how long after the store is back, or its producer's sign is gone, the sample may
            still appear.
    """

    wait_s: float = 900.0
    grace_s: float = 12.0


def wait_until_stored(
    sample: Callable[[], Status],
    producer: Callable[[], Status],
    patience: Patience,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns when `sample` is stored.

    Args:
        sample: looks for the sample, or for what its producer says went wrong with it.
        producer: looks for its producer's sign of life; "stored" means it lives.

    Raises:
        StoreAway: it was lost, because the store forgot it or its producer is gone.
        TimeoutError: not within `wait_s`; the text is a clause that says what was seen last.
    """
    began = clock()
    poll, next_look = _FIRST_POLL_S, began + _LOOK_AT_PRODUCER_S
    forgot = False  # the store was away after the sample had been promised
    doubtful_since: float | None = None
    problem = "it has not been stored (is the store full?)"
    while True:
        found = sample()
        now = clock()
        if found == "stored":
            return
        if found == "away":
            forgot, doubtful_since, poll = True, None, _LONGEST_POLL_S
            problem = "its master does not answer"
        elif now >= next_look:
            next_look = now + _LOOK_AT_PRODUCER_S
            alive = producer()
            if forgot or alive == "absent":
                problem = "the store was started anew" if forgot else "its producer is gone"
                doubtful_since = now if doubtful_since is None else doubtful_since
                if now - doubtful_since >= patience.grace_s:
                    raise StoreAway(f"the sample is lost: {problem}")
            elif alive == "stored":
                doubtful_since = None
        if now - began >= patience.wait_s:
            raise TimeoutError(problem)
        sleep(poll)
        poll = min(_LONGEST_POLL_S, poll * 2)


class Calls:
    """Runs calls that may block in C++ for a minute in one thread, so that signals act meanwhile.

    The thread is made anew in another process (fork) and does not keep Python from ending.
    """

    def __init__(self) -> None:
        self._todo: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]]
        self._todo = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `call` returns or raises."""
        if self._thread is None or not self._thread.is_alive():
            self._todo = queue.SimpleQueue()
            self._thread = threading.Thread(
                target=_work, args=(self._todo,), name="store", daemon=True
            )
            self._thread.start()
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._todo.put((lambda: call(*args, **kwargs), answer))
        while True:
            try:
                good, result = answer.get(timeout=1.0)
                break
            except queue.Empty:
                continue
        if good:
            return result
        raise result


def _work(todo: queue.SimpleQueue[Any]) -> None:
    while True:
        call, answer = todo.get()
        try:
            answer.put((True, call()))
        except BaseException as error:  # noqa: BLE001  (the caller gets it)
            answer.put((False, error))
