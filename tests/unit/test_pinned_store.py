"""A full store waits, never drops; what nobody reads goes. Against a model of Mooncake's rules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

pytest.importorskip("hs_connectors.mooncake_store")

from recipes.mooncake_store import LEASED, NOT_FOUND, Patience, PinnedStore

CAPACITY = 10
NO_ROOM, NO_MASTER = -200, -900
DISCARD_S = 5.0  # real ones: 30 s
LEASE_S = 7.0


class Mooncake:
    """Its answers as they were seen: 0, -200 without room, -704 unknown, -900 without a master.

    A put is begun, written and ended; one that was begun and not ended is no object, and a further
    put of its key is answered 0 until it is discarded. `lost` is whose answer gets lost next: of
    the "begin" or of the "end". The real one is in tests/e2e/test_mooncake.py; here time is made of
    wishes.
    """

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.objects: dict[str, int] = {}
        self.begun: dict[str, float] = {}
        self.leased: dict[str, float] = {}  # key -> until when
        self.lost: str | None = None
        self.master = True
        self.configs: list[object] = []

    def put_from(self, key: str, pointer: int, size: int, config: object) -> int:
        self.configs.append(config)
        if not self.master:
            return NO_MASTER
        if key in self.objects or self.clock() - self.begun.get(key, -DISCARD_S) < DISCARD_S:
            return 0
        if sum(self.objects.values()) + size > CAPACITY:
            return NO_ROOM
        lost, self.lost = self.lost, None
        if lost == "begin":
            self.begun[key] = self.clock()
            return NO_MASTER
        self.objects[key] = size
        return NO_MASTER if lost == "end" else 0

    def is_exist(self, key: str) -> int:
        return int(key in self.objects) if self.master else NO_MASTER

    def put(self, key: str, value: bytes, config: object) -> int:
        return self.put_from(key, 0, len(value), config)

    def lease(self, key: str) -> None:
        """What a reader's look or read does."""
        self.leased[key] = self.clock() + LEASE_S

    def is_leased(self, key: str) -> bool:
        return self.clock() < self.leased.get(key, -1.0)

    def remove(self, key: str, force: bool) -> int:
        if not self.master:
            return NO_MASTER
        if key in self.objects and self.is_leased(key) and not force:
            return LEASED
        return 0 if self.objects.pop(key, None) is not None else NOT_FOUND


class Life(RuleBasedStateMachine):
    """Puts, reads, outages and restarts of the master in any order, over time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.number = 0.0, 0
        self.mooncake = Mooncake(lambda: self.now)
        self.store = PinnedStore(
            self.mooncake, "pinned", CAPACITY, Patience(room_s=20.0, unread_s=10.0),
            clock=lambda: self.now, sleep=self.pass_time,
        )  # fmt: skip
        self.put_at: dict[str, float] = {}

    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(size=st.integers(1, CAPACITY))
    def put(self, size: int) -> None:
        key = f"k{self.number}"
        self.number += 1
        there, began = dict(self.mooncake.objects), self.now
        status = self.store.put_from(key, 0, size)
        assert there.items() <= self.mooncake.objects.items(), "a put evicted what was there"
        if status == 0:
            assert key in self.mooncake.objects, "nothing was put"
            self.put_at[key] = self.now
        else:
            assert self.now - began >= 20.0, "it gave up before its time"
            assert not self.mooncake.master or sum(there.values()) + size > CAPACITY

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        if self.mooncake.objects:
            self.mooncake.objects.pop(data.draw(st.sampled_from(sorted(self.mooncake.objects))))

    @rule(data=st.data())
    def begin_to_read(self, data: st.DataObject) -> None:
        if self.mooncake.objects:
            self.mooncake.lease(data.draw(st.sampled_from(sorted(self.mooncake.objects))))

    @rule(seconds=st.floats(0.1, 8))
    def later(self, seconds: float) -> None:
        self.now += seconds

    @rule(up=st.booleans())
    def master(self, up: bool) -> None:
        if not up and self.mooncake.master:
            self.mooncake.objects.clear()  # it remembers nothing
            self.mooncake.leased.clear()
        self.mooncake.master = up

    @rule(whose=st.sampled_from(["begin", "end"]))
    def an_answer_is_lost(self, whose: str) -> None:
        self.mooncake.lost = whose

    @rule()
    def tidy(self) -> None:
        before = dict(self.mooncake.objects)
        self.store.remove_unread()
        gone = before.keys() - self.mooncake.objects.keys()
        assert all(self.now - self.put_at[key] >= 10.0 for key in gone), "a living reader lost it"
        assert not any(self.mooncake.is_leased(key) for key in gone), "it was being read"
        if self.mooncake.master:
            left = [key for key in self.mooncake.objects if not self.mooncake.is_leased(key)]
            assert all(self.now - self.put_at[key] < 10.0 for key in left)

    @invariant()
    def all_are_pinned(self) -> None:
        assert set(self.mooncake.configs) <= {"pinned"}


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_what_can_never_fit_is_said_at_once() -> None:
    store = PinnedStore(Mooncake(), None, CAPACITY, Patience())
    with pytest.raises(ValueError, match="raise mooncake_segment_gib"):
        store.put_from("k", 0, CAPACITY + 1)


@pytest.mark.parametrize("whose", ["begin", "end"])
def test_a_put_whose_answer_was_lost_succeeds_when_its_sample_is_there(whose: str) -> None:
    now = [0.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    mooncake = Mooncake(lambda: now[0])
    mooncake.lost = whose
    store = PinnedStore(mooncake, None, CAPACITY, Patience(), lambda: now[0], pass_time)
    assert store.put("k", b"12") == 0
    assert mooncake.objects == {"k": 2}
    assert (now[0] >= DISCARD_S) == (whose == "begin")


def test_a_put_that_is_never_there_is_a_failure_at_the_end() -> None:
    now = [0.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    mooncake = Mooncake(lambda: 0.0)  # nothing is ever discarded
    mooncake.lost = "begin"
    patience = Patience(room_s=20.0)
    store = PinnedStore(mooncake, None, CAPACITY, patience, lambda: now[0], pass_time)
    assert store.put("k", b"12") == NO_MASTER
    assert 20.0 <= now[0] < 21.0
    assert store.remove_unread() == 0
