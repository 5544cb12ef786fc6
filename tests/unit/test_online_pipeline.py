"""What extraction and training say together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer

pytest.importorskip("torch")

from benchmarks import online_pipeline
from benchmarks.online_pipeline import compared, timed
from recipes.vllm_server import ServerError
from speculators_patches import revert
from speculators_patches.step_checkpoints import stopping


def arms(side: float, waited: tuple[float, float]) -> dict[str, dict[str, Any]]:
    rates = {"training": 300.0, "extraction": 100.0, "in turn": 60.0, "side by side": side}
    found: dict[str, dict[str, Any]] = {name: {"tokens_s": rate} for name, rate in rates.items()}
    found["in turn"]["waiting_share"], found["side by side"]["waiting_share"] = waited
    return found


def test_a_device_that_does_both_in_turn_is_foretold_exactly() -> None:
    found = compared(arms(75.0, (0.8, 0.25)))
    assert found["foretold_tokens_s"] == 75.0
    assert found["foretold_error"] == 0
    assert (found["trainer_load"], found["producer_load"]) == (0.25, 0.75)
    # A token was waited for 0.8 / 60 s in turn and 0.25 / 75 s beside the step.
    assert found["hidden_by_prefetch"] == 0.75


def test_an_arm_without_tokens_is_compared_with_nothing() -> None:
    given = arms(75.0, (0.8, 0.25))
    given["extraction"]["tokens_s"] = 0.0
    assert set(compared(given).values()) == {None}
    assert compared(given).keys() == compared(arms(75.0, (0.8, 0.25))).keys()


def test_nothing_to_hide_is_said_and_no_error() -> None:
    assert compared(arms(75.0, (0.0, 0.0)))["hidden_by_prefetch"] is None


def test_a_step_longer_than_the_arm_is_measured_all_the_same() -> None:
    found = timed(lambda _: time.sleep(0.05), iter([a_batch()] * 5), 0.01)
    assert found["steps"] == 1
    assert found["tokens_s"] > 0


def a_batch() -> dict[str, Any]:
    import torch

    return {"document_ids": torch.tensor([[0, 0, 1, -1]])}


def test_the_start_of_workers_is_no_part_of_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def batches() -> Iterator[dict[str, Any]]:
        clock[0] += 30  # as long as workers take, and longer than the arm
        while True:
            yield a_batch()
            clock[0] += 0.25

    def step(_: Any) -> None:
        clock[0] += 0.75

    monkeypatch.setattr(online_pipeline.time, "perf_counter", lambda: clock[0])
    found = timed(step, batches(), 20)
    assert (found["seconds"], found["steps"], found["waiting_share"]) == (10, 10, 0.25)
    assert (found["tokens_s"], found["conversations_s"]) == (3, 2)


class Stuck:
    """A data set whose second row never comes."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        if index:
            time.sleep(600)
        return index


def test_workers_are_stopped_even_stuck_ones() -> None:
    from torch.utils.data import DataLoader

    batches: Any = DataLoader(
        Stuck(), num_workers=2, persistent_workers=True, multiprocessing_context="spawn"
    )
    online_pipeline.stop_workers(batches)  # it never began
    next(iter(batches))
    workers = list(batches._iterator._workers)
    online_pipeline.stop_workers(batches)
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)


class Loader:
    """As much of upstream's as an arm uses: one with workers notes what they do."""

    def __init__(self, events: list[str], workers: int) -> None:
        self.batch_sampler, self._events, self._workers = self, events, workers
        self._iterator: Loader | None = None

    def set_epoch(self, _: int) -> None:
        pass

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._workers:
            self._iterator = self
            self._events.append("workers started")
        while True:
            yield a_batch()


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens in `measure` with a server that does nothing."""
    found: list[str] = []

    @contextmanager
    def server(*_: Any) -> Iterator[str]:
        try:
            yield "http://127.0.0.1:1"
        finally:
            found.append("server stopped")

    monkeypatch.setattr(online_pipeline, "server", server)
    monkeypatch.setattr(online_pipeline, "loader", lambda *given: Loader(found, given[-1]))
    monkeypatch.setattr(online_pipeline, "alive", lambda _: True)
    monkeypatch.setattr(
        stopping, "end_workers", lambda began: began and found.append("workers stopped")
    )
    return found


def measured(folder: Path, events: list[str], kept: list[dict[str, Any]]) -> dict[str, Any]:
    def keep(so_far: dict[str, Any]) -> None:
        kept.append(deepcopy(so_far))
        events.append(f"{list(so_far['arms'])[-1]} done")

    order = {"lock": str(folder / "turn"), "workers": 3, "seconds": 0.01, "logs": folder}
    return online_pipeline.measure(order, 0.4, folder, lambda _: None, keep)


def test_workers_end_with_their_arm_and_each_arm_is_kept(tmp_path: Path, events: list[str]) -> None:
    kept: list[dict[str, Any]] = []
    found = measured(tmp_path, events, kept)
    assert events == [
        "training done",
        "workers started", "workers stopped", "side by side done",
        "workers started", "workers stopped", "extraction done",
        "in turn done",
        "server stopped",
    ]  # fmt: skip
    names = ["training", "side by side", "extraction", "in turn"]
    assert [list(one["arms"]) for one in kept] == [names[: n + 1] for n in range(4)]
    assert all(one["unfinished"] for one in kept)
    assert list(found["arms"]) == names
    assert "unfinished" not in found


def test_an_arm_whose_server_has_ended_does_not_count(
    tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_pipeline, "alive", lambda _: "workers started" not in events)
    kept: list[dict[str, Any]] = []
    with pytest.raises(ServerError, match="did not answer after the arm 'side by side'"):
        measured(tmp_path, events, kept)
    assert [list(one["arms"]) for one in kept] == [["training"]]
    assert events[-2:] == ["workers stopped", "server stopped"]


@pytest.fixture
def reverted() -> Iterator[None]:
    """The command applies patches to its process, which here is the tests'."""
    yield
    revert()


def shares(folder: Path, *asked: float) -> tuple[int, list[dict[str, Any]]]:
    """The command's exit code and what it wrote."""
    out, code = folder / "result.json", 0
    try:
        online_pipeline.main(
            share=list(asked), workers=1, seconds=0.01, tokens=64, rows=2, length=8, attention="",
            divide=16, layers=8, fp8=False, out=out,
        )  # fmt: skip
    except typer.Exit as ended:
        code = ended.exit_code
    return code, json.loads(out.read_text())["shares"]


@pytest.mark.usefixtures("reverted")
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ServerError("vLLM server extraction did not start: too small."), "did not start: too"),
        (httpx.ConnectError("refused"), "refused"),
        (RuntimeError("DataLoader worker exited unexpectedly"), "exited unexpectedly"),
    ],
)
def test_a_share_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: Exception, said: str,
) -> None:  # fmt: skip
    def measured(_order: Any, share: float, *_: Any) -> dict[str, Any]:
        if share < 0.5:
            raise error
        return {"share": share, "arms": {}}

    monkeypatch.setattr(online_pipeline, "Step", lambda *_: None)
    monkeypatch.setattr(online_pipeline, "measure", measured)
    code, found = shares(tmp_path, 0.4, 0.7)
    assert code == 1
    assert [one["share"] for one in found] == [0.4, 0.7]
    assert said in found[0]["error"]
    assert found[1] == {"share": 0.7, "arms": {}}
    assert "share 0.4: " in capsys.readouterr().err


@pytest.mark.usefixtures("reverted")
def test_the_arm_whose_server_ended_is_not_in_the_file(
    tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online_pipeline, "Step", lambda *_: lambda _: None)
    monkeypatch.setattr(online_pipeline, "alive", lambda _: "workers started" not in events)
    code, (found,) = shares(tmp_path, 0.4)
    assert code == 1
    assert list(found["arms"]) == ["training"]
    assert found["unfinished"]
    assert found["error"] == "The server did not answer after the arm 'side by side'."


@pytest.mark.parametrize(
    ("asked", "tokens", "said"),
    [
        ([0.4, 2.0], 64, "train_vllm_share=2.0 must lie between 0 and 1"),
        ([0.4], 0, "seq_len=0 must be at least 16"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    tmp_path: Path, asked: list[float], tokens: int, said: str
) -> None:
    with pytest.raises(typer.BadParameter, match=said):
        online_pipeline.main(
            share=asked, workers=1, seconds=1, tokens=tokens, rows=2, length=8, attention="",
            divide=16, layers=8, fp8=False, out=tmp_path / "result.json",
        )  # fmt: skip
    assert not list(tmp_path.iterdir())
