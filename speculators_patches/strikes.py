"""How often a sample may fail before it is at fault, where several servers are asked for it.

A server that dies takes what it was asked for along, so that a failure alone says nothing about the
sample. It counts against it once the server that failed it has answered something else since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence


class Strikes:
    """The failures of one sample.

    Args:
        urls: the servers that can be asked for it.
        limit: at least 1; how many failures that count make it a sample at fault.
    """

    def __init__(self, urls: Sequence[str], limit: int) -> None:
        self._urls, self._limit = tuple(urls), limit
        self._failed: list[str] = []

    def __len__(self) -> int:
        return len(self._failed)

    def add(self, url: str) -> None:
        """The server at `url` failed while it was asked for the sample."""
        self._failed.append(url)

    def enough(self, answers: Callable[[str], bool]) -> bool:
        """Whether the sample is at fault: `limit` of its failures count.

        With one server all do, as it was waited for after each. With several one counts if its
        server was asked for the sample again, for which it had to be back, or answers now. Those
        that stay down do not: the others are asked instead. So that a sample that kills each server
        that it meets does not meet all of a large group, it is at fault too after twice `limit`
        failures, counted or not, if another server answers. A sample of `p` > 1 servers fails
        `p + limit` times at the most.

        Args:
            answers: whether the server at an address answers a request now; asked for as few as
                possible.
        """
        if len(self._failed) < self._limit:
            return False
        if len(self._urls) == 1:
            return True
        met = Counter(self._failed)
        counted, any_up = sum(met.values()) - len(met), False
        for url in met:
            if counted < self._limit and answers(url):
                counted, any_up = counted + 1, True
        if counted >= self._limit:
            return True
        if len(self._failed) < 2 * self._limit:
            return False
        return any_up or any(answers(url) for url in self._urls if url not in met)
