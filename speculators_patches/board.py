"""Which of several servers is busy and which is out, for all processes of this machine that ask.

Trainers and their DataLoader workers are processes of their own, and each asks for one sample at a
time. What they have to know of each other is kept in a folder of lock files: a request holds a lock
for as long as it lasts, so that a process that is killed gives its turn back with its life.
Trainers on other machines have a board of their own; each balances its own share.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path


class Board:
    """For the servers at `urls`; the same ones in the same order are the same board.

    Args:
        urls: addresses, each once.
        folder: where the boards of this user are; None: the folder for temporary files.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, urls: Sequence[str], folder: Path | None = None) -> None:
        self.urls = tuple(urls)
        home = folder or Path(tempfile.gettempdir())
        name = hashlib.sha256("\n".join(self.urls).encode()).hexdigest()[:12]
        self._folder = home / f"speculators_patches-{os.getuid()}-producers-{name}"
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._last = os.getpid()  # ties go round, from another beginning in each process

    @contextlib.contextmanager
    def turn(self) -> Iterator[str]:
        """The server with the fewest requests under way, of those that are not out; all are out:
        of all. It counts as asked until the block ends or the process does."""
        with self._exclusive("choose"):
            busy = {url: self._busy(url) for url in self.urls}
            ready = [url for url in self.urls if not self.is_out(url)] or list(self.urls)
            self._last += 1
            turned = [ready[(self._last + n) % len(ready)] for n in range(len(ready))]
            url = min(turned, key=lambda url: len(busy[url]))
            slot = next(n for n in range(len(busy[url]) + 1) if n not in busy[url])
            held = self._lock(self._slot(url, slot))
        assert held is not None  # nobody else takes one without the lock above
        try:
            yield url
        finally:
            os.close(held)

    def busy(self) -> dict[str, int]:
        """URL -> requests under way from this machine."""
        with self._exclusive("choose"):
            return {url: len(self._busy(url)) for url in self.urls}

    def take_out(self, url: str) -> bool:
        """No turn goes to `url` until it is put back; False if it was out already."""
        try:
            self._out(url).touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            return False
        return True

    def put_back(self, url: str) -> bool:
        """It has answered; False if it was not out."""
        try:
            self._out(url).unlink()
        except FileNotFoundError:
            return False
        return True

    def is_out(self, url: str) -> bool:
        return self._out(url).exists()

    @contextlib.contextmanager
    def probing(self, url: str) -> Iterator[bool]:
        """Whether this process is the one that looks whether `url` is back."""
        held = self._lock(self._folder / f"{self.urls.index(url)}.probe")
        try:
            yield held is not None
        finally:
            if held is not None:
                os.close(held)

    def _out(self, url: str) -> Path:
        return self._folder / f"{self.urls.index(url)}.out"

    def _slot(self, url: str, number: int) -> Path:
        return self._folder / f"{self.urls.index(url)}-{number}.asked"

    def _busy(self, url: str) -> set[int]:
        """Numbers of the locks that requests hold."""
        found = set()
        for path in self._folder.glob(f"{self.urls.index(url)}-*.asked"):
            held = self._lock(path)
            if held is None:
                found.add(int(path.stem.partition("-")[2]))
            else:
                os.close(held)
        return found

    @contextlib.contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        descriptor = os.open(self._folder / name, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    @staticmethod
    def _lock(path: Path) -> int | None:
        """An open descriptor that holds the file's lock; None: another one does."""
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor
