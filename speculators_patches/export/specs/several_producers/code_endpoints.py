"""Which of several vLLM servers is asked next."""

import os
import time

from torch.utils.data import get_worker_info

# Seconds that an address whose connection failed is left out.
REST = 30.0


class EndpointRotation:
    """The addresses in a comma-separated list, in turn.

    Args:
        listed: one or more addresses.
        rest: seconds that an address whose connection failed is left out.
    """

    def __init__(self, listed: str, rest: float = REST):
        parts = (part.strip() for part in listed.split(","))
        self.urls = list(dict.fromkeys(part for part in parts if part))
        if not self.urls:
            raise ValueError(f"--vllm-endpoint {listed!r} names no address")
        self.rest = rest
        self._resting: dict[str, float] = {}
        self._turn: int | None = None

    def next(self) -> str:
        """The next address that is not resting; if all are, the first that rested."""
        if self._turn is None:  # known only in the process that asks
            worker = get_worker_info()
            # A spawned worker does not have what the trainer knows of its rank.
            rank = int(os.environ.get("RANK", "0"))
            self._turn = rank + (worker.id if worker else 0)
        now = time.monotonic()
        count = len(self.urls)
        order = [self.urls[(self._turn + offset) % count] for offset in range(count)]
        ready = [url for url in order if self._resting.get(url, now) <= now]
        url = ready[0] if ready else min(order, key=self._resting.__getitem__)
        self._turn = self.urls.index(url) + 1
        return url

    def failed(self, url: str) -> None:
        """Leave ``url`` out for a while."""
        self._resting[url] = time.monotonic() + self.rest

    def answered(self, url: str) -> None:
        """``url`` takes its turn again."""
        self._resting.pop(url, None)
