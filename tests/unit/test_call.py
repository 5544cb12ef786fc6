"""How machines hear of each other: nothing old is believed, silence is told from an end."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from recipes.config import resolve
from recipes.process import StageError
from recipes.run_folder import RunFolder
from recipes.spread import join
from recipes.spread.call import BODY, EXTRACTION, TRAINERS, Call, Listener, file_of
from recipes.spread.placement import place


def test_a_listener_hears_what_is_wanted_until_the_end(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    listener = Listener(run)
    listener.listen()
    assert not listener.heard
    with Call(run, beat_s=0.01) as call:
        with call.wanting(EXTRACTION), call.wanting(TRAINERS):
            listener.listen()
            assert listener.wanted == {EXTRACTION, TRAINERS}
            time.sleep(0.1)
            listener.listen()
            assert listener.silent_s < 0.1  # beats count as life
        listener.listen()
        assert not listener.wanted
        assert not listener.over
    listener.listen()
    assert listener.over


def test_what_a_killed_leader_left_is_not_believed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    left = {"leader": "dead", "beat": 7, "wanted": [BODY], "over": False}
    file_of(run).parent.mkdir()
    file_of(run).write_text(json.dumps(left))
    listener = Listener(run)
    listener.listen()
    assert not listener.heard
    assert not listener.wanted
    # Nor the end of the run before this one.
    file_of(run).write_text(json.dumps(left | {"over": True}))
    later = Listener(run)
    later.listen()
    assert not later.over
    with Call(run) as call, call.wanting(BODY):
        later.listen()
        assert later.wanted == {BODY}


def test_a_file_of_another_version_is_waited_out(tmp_path: Path) -> None:
    listener = Listener(RunFolder(tmp_path))
    file_of(RunFolder(tmp_path)).parent.mkdir()
    file_of(RunFolder(tmp_path)).write_text('["no", "call"]')
    listener.listen()
    assert listener.heard
    assert not listener.wanted


def recipe(*settings: str):
    return resolve("h100", None, ["hosts=127.0.0.2,127.0.0.3", *settings])[0]


def test_a_silent_leader_ends_a_machine_with_a_sentence(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(join, "_LOOK_S", 0.01)
    with pytest.raises(StageError, match="nothing was heard of the leading machine for"):
        join.join(recipe(), RunFolder(tmp_path), 1, print, print, silence_s=0.05)


def test_a_server_that_starts_slowly_is_no_silence(tmp_path: Path, monkeypatch) -> None:
    """The leader spoke all the time; nobody listened."""
    monkeypatch.setattr(join, "_LOOK_S", 0.01)

    def serve(*_: object) -> ExitStack:
        time.sleep(0.5)
        return ExitStack()

    monkeypatch.setattr(join, "_serve", serve)
    run = RunFolder(tmp_path)
    failures: list[StageError] = []

    def joining() -> None:
        try:
            join.join(recipe(), run, 1, print, print, silence_s=0.3)
        except StageError as error:
            failures.append(error)

    machine = threading.Thread(target=joining)
    machine.start()
    with Call(run, beat_s=0.01) as call, call.wanting(EXTRACTION):
        time.sleep(0.8)
    machine.join(10)
    assert not machine.is_alive()
    assert not failures


def test_the_key_of_production_guards_no_producer_and_that_is_said(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(join, "_LOOK_S", 0.01)
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    said: list[str] = []
    with pytest.raises(StageError):
        join.join(recipe(), RunFolder(tmp_path), 1, said.append, print, silence_s=0.05)
    assert "VLLM_API_KEY is not used for its producers" in said[1]
    assert "s3cret" not in "".join(said)


def test_a_machine_ends_with_its_leader(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(join, "_LOOK_S", 0.01)
    said: list[str] = []
    machine = threading.Thread(
        target=join.join, args=(recipe(), RunFolder(tmp_path), 1, said.append, print, 20)
    )
    machine.start()
    with Call(RunFolder(tmp_path), beat_s=0.01):
        time.sleep(0.2)
        assert machine.is_alive()
    machine.join(10)
    assert not machine.is_alive()
    assert said[0] == "machine 1 (127.0.0.3): 0 trainers, 1 producers"
    assert said[-1].endswith("so does this one")


def test_producers_are_where_the_leader_looks_for_them(tmp_path: Path) -> None:
    one = recipe("producers=3", "producer_port=8200")
    led = join.with_endpoints(one)
    served = [
        f"http://{spec.host}:{spec.port}"
        for number in range(2)
        for spec in join.specs(one, RunFolder(tmp_path), number, EXTRACTION)
    ]
    assert served == [f"http://127.0.0.3:{port}" for port in (8200, 8201, 8202)]
    assert led.train_endpoint.split(",") == served
    assert led.regenerate_endpoints == tuple(served)
    gpus = [s.env["CUDA_VISIBLE_DEVICES"] for s in join.specs(one, RunFolder(tmp_path), 1, BODY)]
    assert gpus == ["0", "1", "2"]


def test_endpoints_of_the_users_own_are_left_alone(tmp_path: Path) -> None:
    one = recipe("train_endpoint=http://mine:1")
    assert join.with_endpoints(one).train_endpoint == "http://mine:1"
    assert join.specs(one, RunFolder(tmp_path), 1, EXTRACTION) == []
    assert join.specs(one, RunFolder(tmp_path), 1, BODY)
    alone, _ = resolve("h100")
    assert join.with_endpoints(alone) == alone


def test_all_machines_train_with_one_command(tmp_path: Path) -> None:
    one = recipe("trainers=2", "producers=2", "host_gpus=1")
    first, second = (join.training(one, RunFolder(tmp_path), number) for number in (0, 1))
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert different == [
        ("is_host=1,join_timeout=1800", "is_host=0,join_timeout=1800"),
        ("127.0.0.2", "127.0.0.3"),
    ]
    assert place(one).number_of("127.0.0.3") == 1
