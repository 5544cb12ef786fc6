"""Upstream's Mooncake store as a producer needs it: nothing is dropped, nothing is left behind.

Upstream puts samples like cache entries. Mooncake then throws the oldest away as soon as memory is
short, read or not, and tells nobody (of 20 samples put into a store for 16 six were gone, and every
put had succeeded: tests/faults/test_full_store.py); a put that finds no room, or no master, fails
at once; and a sample whose reader died stays for ever. Here

- samples are pinned, so that none is evicted, and lie in this producer's own memory, so that they
  are lost with it and with nobody else;
- a put without room or without a master waits for it, up to `room_s`, and one that had to be tried
  again has succeeded only when its sample is there: Mooncake says 0 to a key that it knows, also
  where the answer to an earlier try was lost on its way and nothing was written since;
- what nobody has read within `unread_s` of its put is removed: its reader is dead. One that reads,
  or has just looked, has a lease from the master, and what is leased stays, however slow the link:
  memory that is given away under a reader would give it another sample's bytes;
- a small object of the name `producer-<id>` says that this producer lives, to those who wait.

Used by `recipes.mooncake_hidden_states` in the vLLM process. Run with Mooncake 0.3.13.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hs_connectors.mooncake_store import MooncakeHiddenStatesStore, MooncakeStoreConfig

from speculators_patches.mooncake_client import local_address

logger = logging.getLogger(__name__)

NOT_FOUND, LEASED = -704, -706
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_SAY_EVERY_S = 30.0
_LOOK_S = 1.0


@dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
        room_s: how long a put may wait for room or for the master.
        unread_s: after how long a sample that nobody has under way is left over.
    """

    room_s: float = 900.0
    unread_s: float = 120.0


class PinnedStore:
    """A connected `MooncakeDistributedStore` that pins what is put and waits for room.

    Args:
        store: Mooncake's.
        config: Mooncake's ReplicateConfig for every put.
        capacity: bytes that fit at all.
        patience: limits.
        clock, sleep: seconds.
    """

    def __init__(
        self,
        store: Any,
        config: Any,
        capacity: int,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._config, self._capacity = store, config, capacity
        self._patience, self._clock, self._sleep = patience, clock, sleep
        self._put: dict[str, float] = {}  # key -> when, in that order
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put_from(self, key: str, pointer: int, size: int) -> int:
        """0, or Mooncake's status when there was no room for `room_s`.

        Raises:
            ValueError: it can never fit.
        """
        if size > self._capacity:
            raise ValueError(
                f"a sample of {size / 1e6:.3g} MB does not fit into this producer's "
                f"{self._capacity / 1e6:.3g} MB of Mooncake memory: raise mooncake_segment_gib"
            )
        return self._until_stored(
            key, lambda: int(self._store.put_from(key, pointer, size, self._config))
        )

    def put(self, key: str, value: bytes) -> int:
        """As `put_from`."""
        return self._until_stored(key, lambda: int(self._store.put(key, value, self._config)))

    def _until_stored(self, key: str, attempt: Callable[[], int]) -> int:
        began = said = self._clock()
        pause, failed = _FIRST_PAUSE_S, 0
        while True:
            status = attempt()
            # What a reader has fetched and removed by now is put again, and goes as unread.
            if status >= 0 and (failed == 0 or self._store.is_exist(key) == 1):
                break
            failed = status if status < 0 else failed
            now = self._clock()
            if now - began >= self._patience.room_s:
                return failed
            if now - said >= _SAY_EVERY_S:
                said = now
                logger.warning(
                    "Mooncake has had no room or no master for %s for %.0f s (status %s); waiting",
                    key, now - began, failed,
                )  # fmt: skip
            self._sleep(pause)
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)
        with self._lock:
            self._put[key] = self._clock()
        return status

    def remove_unread(self) -> int:
        """Removes what has been there for `unread_s` and nobody leases; how many there were."""
        before = self._clock() - self._patience.unread_s
        with self._lock:
            old = [key for key, at in self._put.items() if at <= before]
        removed = 0
        for key in old:
            status = self._store.remove(key, False)  # not by force: see the lease above
            if status < 0 and status != NOT_FOUND:
                continue  # LEASED, or no master just now: the next look
            removed += status >= 0
            with self._lock:
                self._put.pop(key, None)
        return removed


class ProducerStore(MooncakeHiddenStatesStore):
    """Upstream's store with a `PinnedStore` below it and a thread that keeps it tidy.

    Args:
        config: upstream's settings.
        patience: limits.
        name: of the object that says that this producer lives.
    """

    def __init__(self, config: MooncakeStoreConfig, patience: Patience, name: str) -> None:
        super().__init__(config)
        self._patience, self._name = patience, name

    def setup(self) -> ProducerStore:
        """Connects; the object `name` is there when it returns.

        Raises:
            ImportError: Mooncake is not installed.
            OSError: its master takes no connection.
            RuntimeError: it cannot be used, or there is no memory.
        """
        if self.is_setup:
            return self
        self.config.local_hostname = local_address(self.config.master_server_address)
        from mooncake.store import ReplicateConfig

        super().setup()
        store = self._require_store()
        config = ReplicateConfig()
        config.with_hard_pin = True
        config.preferred_segment = store.get_hostname()
        self._store = PinnedStore(store, config, self.config.global_segment_size, self._patience)
        store.put(self._name, b"1", config)
        threading.Thread(
            target=self._tidy, args=(store, config), name="mooncake-tidy", daemon=True
        ).start()
        return self

    def _tidy(self, store: Any, config: Any) -> None:
        while True:
            time.sleep(_LOOK_S)
            if store.is_exist(self._name) == 0:  # the master was started anew and knows nothing
                store.put(self._name, b"1", config)
            removed = self._require_store().remove_unread()
            if removed:
                logger.warning("removed %d samples from Mooncake that nobody read", removed)
