"""Several servers that answer alike: each request goes to the one with the least to do.

A server that takes no connection, or keeps one without an answer, is left alone for a while (half a
second, doubling up to half a minute); its share goes to the others. If all of them are down,
requests wait: a server that is being started again is no reason to give up an answer. After
`wait_s` without any answer, `NoServer`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


class NoServer(RuntimeError):
    """No server has answered for too long; one sentence."""


class Endpoints:
    """Which URL the next request goes to. For one event loop.

    Args:
        urls: at least one.
        wait_s: seconds that all of them may be down.
        clock: seconds, never going back.
    """

    def __init__(
        self, urls: Sequence[str], wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.urls = list(dict.fromkeys(urls))
        self._wait_s = wait_s
        self._clock = clock
        self.busy = dict.fromkeys(self.urls, 0)
        self._failures = dict.fromkeys(self.urls, 0)
        self._paused_until = dict.fromkeys(self.urls, 0.0)
        self._all_down_since: float | None = None
        self._last_error = ""

    async def acquire(self) -> str:
        """The URL with the fewest requests under way; give it back with `release`.

        Raises:
            NoServer: all have been down for `wait_s`.
        """
        while True:
            now = self._clock()
            since = self._all_down_since
            if since is not None and now - since >= self._wait_s:
                raise NoServer(
                    f"no server has answered for {now - since:.0f} s ({', '.join(self.urls)}; "
                    f"{self._last_error}); start it and run the same command again, "
                    "what was answered is kept"
                )
            up = [url for url in self.urls if self._paused_until[url] <= now]
            if up:
                url = min(up, key=lambda url: self.busy[url])
                self.busy[url] += 1
                return url
            left = min(self._paused_until.values()) - now
            if since is not None:
                left = min(left, since + self._wait_s - now)
            await asyncio.sleep(max(0.0, left))

    def release(self, url: str) -> None:
        self.busy[url] -= 1

    def answered(self, url: str) -> None:
        """It is up: whatever it said."""
        self._failures[url] = 0
        self._paused_until[url] = 0.0
        self._all_down_since = None

    def unreachable(self, url: str, error: BaseException) -> None:
        """It took no connection, or did not answer in time."""
        now = self._clock()
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._failures[url], 16))
        # Requests that were under way together are one failure, not many.
        if self._paused_until[url] <= now:
            self._failures[url] += 1
            self._paused_until[url] = now + pause
        self._last_error = str(error).partition("\n")[0] or type(error).__name__
        if self._all_down_since is None and all(self._failures.values()):
            self._all_down_since = now
