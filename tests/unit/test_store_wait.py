"""Waiting for a sample: it comes, is lost, or the wait ends; signals act meanwhile."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches.store_wait import (
    Calls,
    Patience,
    Status,
    StoreAway,
    wait_until_stored,
)

PATIENCE = Patience(wait_s=60.0, grace_s=5.0)


class World:
    """A clock, when the sample is stored, when the master answers, when the producer lives."""

    def __init__(
        self,
        stored_at: float,
        away: tuple[float, float] = (0.0, 0.0),
        died_at: float = float("inf"),
        signs_again_after: float = 1.0,
    ) -> None:
        self.now, self.stored_at, self.away, self.died_at = 0.0, stored_at, away, died_at
        self.signs_again = away[1] + signs_again_after

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def is_away(self) -> bool:
        return self.away[0] <= self.now < self.away[1]

    def sample(self) -> Status:
        if self.is_away():
            self.now += 4.0  # as long as Mooncake tries to connect
            return "away"
        return "stored" if self.now >= self.stored_at else "absent"

    def producer(self) -> Status:
        if self.is_away():
            return "away"
        gone = self.now >= self.died_at
        silent = self.away[1] > 0 and self.away[0] <= self.now < self.signs_again
        return "absent" if gone or silent else "stored"

    def wait(self) -> float:
        wait_until_stored(self.sample, self.producer, PATIENCE, self.clock, self.sleep)
        return self.now


@given(st.floats(0, 50))
def test_a_full_store_is_waited_for_and_the_sample_is_seen_at_once(stored_at: float) -> None:
    assert stored_at <= World(stored_at).wait() <= stored_at + 0.1


@given(begins=st.floats(0.001, 20), lasts=st.floats(0.5, 30), late=st.floats(0, 4))
def test_a_master_that_is_back_in_time_costs_nothing_that_is_still_put(
    begins: float, lasts: float, late: float
) -> None:
    back = begins + lasts
    assert World(back + late, away=(begins, back)).wait() >= back + late


@given(begins=st.floats(0.001, 20), lasts=st.floats(0.5, 30))
def test_what_a_new_master_does_not_know_is_asked_again(begins: float, lasts: float) -> None:
    world = World(float("inf"), away=(begins, begins + lasts))
    with pytest.raises(StoreAway, match="the store was started anew"):
        world.wait()
    # Within a look at the producer, its patience, and one try to connect that ends late.
    assert world.now <= begins + lasts + PATIENCE.grace_s + 4.0 + 2.2


@given(st.floats(0, 40))
def test_a_dead_producer_is_not_waited_for(died_at: float) -> None:
    world = World(float("inf"), died_at=died_at)
    with pytest.raises(StoreAway, match="its producer is gone"):
        world.wait()
    assert world.now <= died_at + PATIENCE.grace_s + 2.2


@pytest.mark.parametrize(
    ("world", "why"),
    [
        (World(float("inf")), "has not been stored"),
        (World(float("inf"), away=(0.0, 1e9)), "master does not answer"),
    ],
)
def test_the_wait_ends(world: World, why: str) -> None:
    with pytest.raises(TimeoutError, match=why):
        world.wait()
    assert PATIENCE.wait_s <= world.now <= PATIENCE.wait_s + 4.2


def test_calls_leave_signals_free_and_pass_errors_on() -> None:
    calls = Calls()
    assert calls(lambda x, y: x + y, 1, y=2) == 3
    with pytest.raises(KeyError):
        calls({}.__getitem__, "x")

    class Interrupted(BaseException):
        pass

    def raise_it(*_: object) -> None:
        raise Interrupted

    block = threading.Event()
    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        began = time.monotonic()
        with pytest.raises(Interrupted):
            calls(block.wait, 30)
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGUSR1, before)
        block.set()
    assert calls(lambda: "next") == "next"  # the answer of the call that was left is not taken
