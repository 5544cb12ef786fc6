"""A full store waits, never drops; what nobody reads goes. Against a model of Mooncake's rules."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

pytest.importorskip("hs_connectors.mooncake_store")

from recipes.mooncake_store import NOT_FOUND, Patience, PinnedStore

CAPACITY = 10
NO_ROOM, NO_MASTER = -200, -900


class Mooncake:
    """Its answers as they were seen: 0, -200 without room, -704 unknown, -900 without a master.

    The real one is in tests/e2e/test_mooncake.py; here time is made of wishes.
    """

    def __init__(self) -> None:
        self.objects: dict[str, int] = {}
        self.master = True
        self.configs: list[object] = []

    def put_from(self, key: str, pointer: int, size: int, config: object) -> int:
        self.configs.append(config)
        if not self.master:
            return NO_MASTER
        if sum(self.objects.values()) + size > CAPACITY:
            return NO_ROOM
        self.objects[key] = size
        return 0

    def put(self, key: str, value: bytes, config: object) -> int:
        return self.put_from(key, 0, len(value), config)

    def remove(self, key: str, force: bool) -> int:
        assert force
        if not self.master:
            return NO_MASTER
        return 0 if self.objects.pop(key, None) is not None else NOT_FOUND


class Life(RuleBasedStateMachine):
    """Puts, reads, outages and restarts of the master in any order, over time."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.number = 0.0, 0
        self.mooncake = Mooncake()
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
            self.put_at[key] = self.now
        else:
            assert self.now - began >= 20.0, "it gave up before its time"
            assert not self.mooncake.master or sum(there.values()) + size > CAPACITY

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        if self.mooncake.objects:
            self.mooncake.objects.pop(data.draw(st.sampled_from(sorted(self.mooncake.objects))))

    @rule(seconds=st.floats(0.1, 8))
    def later(self, seconds: float) -> None:
        self.now += seconds

    @rule(up=st.booleans())
    def master(self, up: bool) -> None:
        if not up and self.mooncake.master:
            self.mooncake.objects.clear()  # it remembers nothing
        self.mooncake.master = up

    @rule()
    def tidy(self) -> None:
        before = dict(self.mooncake.objects)
        self.store.remove_unread()
        gone = before.keys() - self.mooncake.objects.keys()
        assert all(self.now - self.put_at[key] >= 10.0 for key in gone), "a living reader lost it"
        if self.mooncake.master:
            assert all(self.now - self.put_at[key] < 10.0 for key in self.mooncake.objects)

    @invariant()
    def all_are_pinned(self) -> None:
        assert set(self.mooncake.configs) <= {"pinned"}


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_what_can_never_fit_is_said_at_once() -> None:
    store = PinnedStore(Mooncake(), None, CAPACITY, Patience())
    with pytest.raises(ValueError, match="raise mooncake_segment_gib"):
        store.put_from("k", 0, CAPACITY + 1)
