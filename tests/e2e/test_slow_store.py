"""A sample that is read over a slow link: it arrives, and nobody takes it away meanwhile.

Real Mooncake over TCP between two network namespaces of the test's own. 16 s a read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

pytest.importorskip("hs_connectors.mooncake_store")

from recipes.vllm.mooncake import LEASE_S, READ_S
from tests.e2e import mooncake_here, network
from tests.e2e.network import Host, Network

WHY_NO_NETWORK = network.why_not()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(bool(mooncake_here.WHY_NOT), reason=str(mooncake_here.WHY_NOT)),
    pytest.mark.skipif(bool(WHY_NO_NETWORK), reason=str(WHY_NO_NETWORK)),
]
MODULE = "tests.e2e.slow_store_host"
MBIT = 1  # 16 s for the sample's 2 MB
Pair = Callable[..., tuple[Host, Host]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A producer, with the master, and a reader; what the producer sends is slow."""
    with ExitStack() as stack:

        def start(unread_s: float, *flags: str) -> tuple[Host, Host]:
            made = stack.enter_context(Network(("one", "train")))
            told = {"master": f"{made.address('one')}:50051", "unread_s": unread_s, "flags": flags}
            producer = made.start("one", "producer", told, MODULE)
            producer.answer()
            reader = made.start("train", "reader", told, MODULE)
            reader.answer()
            made.slow("one", mbit=MBIT, delay_ms=5)
            producer.ask("put")
            return producer, reader

        yield start


def test_a_sample_that_takes_longer_than_mooncakes_lease_arrives(pair: Pair) -> None:
    assert LEASE_S > READ_S
    producer, reader = pair(unread_s=4.0)
    found = reader.ask("read")
    assert found["seconds"] > 10.0, "the link is not slow"
    assert found.get("same"), found
    assert not producer.ask("look")["gone"]  # for 12 s it counted as left over


def test_with_mooncakes_own_lease_it_never_does_and_the_reader_says_why(pair: Pair) -> None:
    _, reader = pair(600.0, "-default_kv_lease_ttl=10s")
    found = reader.ask("read")
    assert found["error"] == (
        "StoreAway: a stored sample could not be read: it took longer than its lease; start the "
        "master with -default_kv_lease_ttl=90s"
    )


def test_one_that_is_removed_under_its_reader_is_not_taken_for_good(pair: Pair) -> None:
    """As after a restart of the master, or by somebody's script."""
    producer, reader = pair(600.0)
    reader.begin("read")
    time.sleep(5.0)  # it is under way, for 16 s
    assert producer.ask("remove")["status"] == 0
    found = reader.answer()
    assert "was removed from the store while it was read" in found["error"], found


def test_what_a_dead_reader_had_looked_for_goes_when_its_lease_is_over(pair: Pair) -> None:
    producer, reader = pair(1.0, "-default_kv_lease_ttl=6s")
    assert reader.ask("look")["there"] == 1
    time.sleep(3.5)  # left over for two looks of its producer
    assert not producer.ask("look")["gone"]
    producer.wait_until("look", "gone", 1)
