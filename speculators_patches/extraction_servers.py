"""The servers that one `generate-offline-data` asks: who is asked next, who is out, who is back.

    servers = Servers(urls, wait_s)
    server = servers.free()                    # the one with the least to do
    ...                                        # ask it
    await servers.away(server, recoveries, why, prompt, folder, discard)   # it failed

For one event loop, which all requests share (training, whose askers are processes, has `several`).
A server that failed is out until it answers a request of the size of a sample; its share goes to
the others. Where none is up, all requests wait for the first that is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from speculators_patches.producer import Gone, Producer

logger = logging.getLogger("speculators")

_Discard = Callable[[str], None]


class Server:
    """One of them.

    Attributes:
        url: as it was given.
        producer: what knows whether it can be asked.
        recoveries: how often it has come back; a request remembers it from when it was sent.
    """

    def __init__(self, url: str, wait_s: float) -> None:
        self.url, self._wait_s = url, wait_s
        self.recoveries = 0
        self.begin_anew()
        self._busy = 0
        self._looking: asyncio.Task[None] | None = None
        self._gone: Gone | None = None

    def begin_anew(self) -> None:
        """Its time to come back begins when it is missed the next time."""
        self.producer = Producer(
            self.url, self._wait_s, what="Extraction", goes_on="with what is left"
        )

    @property
    def is_up(self) -> bool:
        return self._looking is None

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """A request is under way for the block."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1


class Servers:
    """The servers at `urls`.

    Args:
        urls: at least one.
        wait_s: how long all of them may be gone, seconds.
    """

    def __init__(self, urls: Sequence[str], wait_s: float) -> None:
        self.all = tuple(Server(url, wait_s) for url in urls)
        self._turn = itertools.count()
        self._news = asyncio.Event()

    def free(self) -> Server:
        """The one with the fewest requests under way, of those that are up; of all if none is."""
        ready = [one for one in self.all if one.is_up] or list(self.all)
        first = next(self._turn) % len(ready)  # ties go round
        return min(ready[first:] + ready[:first], key=lambda one: one._busy)

    async def away(
        self,
        server: Server,
        recoveries: int,
        why: str,
        prompt: Sequence[int],
        folder: Path | None,
        discard: _Discard,
    ) -> None:
        """`server` failed; returns when there is one to ask, at once while another is up.

        Args:
            recoveries: its own when the request was sent: it may be back since.
            why: what went wrong with the request, a clause.
            prompt: token ids of its sample.
            folder: where servers leave their files; None: not known.
            discard: removes what a server stored under a handle.

        Raises:
            Gone: none has come back for too long.
        """
        if server.is_up and server.recoveries == recoveries:
            look = self._look_after(server, why, prompt, folder, discard)
            server._looking = asyncio.create_task(look)
            server._looking.add_done_callback(lambda _: self._news.set())
        while not any(one.is_up for one in self.all):
            for one in self.all:
                if one._looking is not None and one._looking.done():
                    one._looking.result()  # it ends without an answer by an error of ours alone
            if all(one._gone for one in self.all):
                raise Gone(str(server._gone))
            self._news.clear()
            await self._news.wait()

    async def _look_after(
        self,
        server: Server,
        why: str,
        prompt: Sequence[int],
        folder: Path | None,
        discard: _Discard,
    ) -> None:
        """Ends when it is back; `_gone` says that it has been out for too long with all others."""
        others = any(one.is_up for one in self.all if one is not server)
        name = server.producer.url
        if others:
            logger.warning(f"no hidden states from {name}: {why}. It is out until it answers")
        while True:
            try:
                for pause in server.producer.pauses(why, quiet=others):
                    await asyncio.sleep(pause)
                    if await asyncio.to_thread(
                        server.producer.is_back, why, prompt, folder, discard
                    ):
                        break
            except Gone as gone:
                server._gone = None if any(one.is_up for one in self.all) else gone
                server.begin_anew()
                self._news.set()
                continue
            server.recoveries += 1
            server._looking = server._gone = None
            self._news.set()
            if len(self.all) > 1:
                logger.warning(f"{name} is up again and gets its share")
            return
