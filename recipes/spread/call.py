"""How the leading machine tells the others what it wants of them: one small file, renewed.

The file lies in the run folder, which all machines share. A listener believes only what has changed
since it began to listen, so that neither a file left by a killed leader nor a clock that differs
between machines misleads it.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from recipes.run_folder import RunFolder, write_atomically

BODY, EXTRACTION, TRAINERS = "body", "extraction", "trainers"
BEAT_S = 5.0


def file_of(run: RunFolder) -> Path:
    return run.root / "machines" / "call.json"


class Call:
    """The leader's side; use as a context manager around the stages.

    Args:
        run: the run folder.
        beat_s: seconds between two signs of life.
    """

    def __init__(self, run: RunFolder, beat_s: float = BEAT_S) -> None:
        self._path = file_of(run)
        self._beat_s = beat_s
        self._leader = uuid.uuid4().hex
        self._wanted: list[str] = []
        self._beat = 0
        self._over = False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, daemon=True)

    @contextlib.contextmanager
    def wanting(self, what: str) -> Iterator[None]:
        """While the block runs the other machines are to give `what`."""
        self._wanted.append(what)
        self._write()
        try:
            yield
        finally:
            self._wanted.remove(what)
            self._write()

    def __enter__(self) -> Call:
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._over = True
        self._write()

    def _keep_alive(self) -> None:
        while not self._ended.wait(self._beat_s):
            # A full disk is no reason to end: the stages will say so themselves.
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        with self._lock:
            self._beat += 1
            content = {
                "leader": self._leader,
                "beat": self._beat,
                "wanted": sorted(set(self._wanted)),
                "over": self._over,
            }
            write_atomically(self._path, json.dumps(content) + "\n")


class Listener:
    """Another machine's side.

    Attributes:
        wanted: what the leader wants now.
        over: the leader has ended in good order.
    """

    def __init__(self, run: RunFolder) -> None:
        self._path = file_of(run)
        self._before = self._read()
        self._changed = time.monotonic()
        self.heard = False
        self.wanted: frozenset[str] = frozenset()
        self.over = False

    def listen(self) -> None:
        """Look once."""
        content = self._read()
        if content is None or content == self._before:
            return
        self._before = content
        self._changed = time.monotonic()
        self.heard = True
        try:
            told = json.loads(content)
            self.wanted, self.over = frozenset(told["wanted"]), bool(told["over"])
        except (ValueError, KeyError, TypeError):
            return  # another version's; the next beat may be readable

    @property
    def silent_s(self) -> float:
        """Seconds since the leader was last heard, or since listening began."""
        return time.monotonic() - self._changed

    def _read(self) -> str | None:
        try:
            return self._path.read_text("utf-8")
        except OSError:
            return None
