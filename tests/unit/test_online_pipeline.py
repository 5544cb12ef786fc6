"""What extraction and training say together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import typer

pytest.importorskip("torch")

from benchmarks import online_pipeline
from benchmarks.online_pipeline import compared, timed
from recipes.vllm_server import ServerError
from speculators_patches import revert


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


def test_nothing_to_hide_is_said_and_no_error() -> None:
    assert compared(arms(75.0, (0.0, 0.0)))["hidden_by_prefetch"] is None


def test_a_step_longer_than_the_arm_is_measured_all_the_same() -> None:
    import time

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


def test_workers_are_stopped_and_a_loader_that_never_began_is_no_error() -> None:
    from torch.utils.data import DataLoader

    batches = DataLoader(
        list(range(100)), num_workers=2, persistent_workers=True, multiprocessing_context="spawn"
    )
    online_pipeline.stop_workers(batches)
    next(iter(batches))
    workers = list(batches._iterator._workers)
    online_pipeline.stop_workers(batches)
    assert not any(worker.is_alive() for worker in workers)


class Loader:
    """As much of upstream's as an arm uses."""

    def __init__(self, events: list[str], name: str) -> None:
        self.batch_sampler, self._iterator = self, self
        self._events, self._name = events, name

    def set_epoch(self, _: int) -> None:
        pass

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield a_batch()

    def _shutdown_workers(self) -> None:
        self._events.append(f"{self._name} stopped")


def test_workers_end_before_their_server_and_each_arm_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    @contextmanager
    def server(*_: Any) -> Iterator[str]:
        yield "http://127.0.0.1:1"
        events.append("server stopped")

    monkeypatch.setattr(online_pipeline, "server", server)
    monkeypatch.setattr(
        online_pipeline, "loader", lambda *given: Loader(events, f"{given[-1]} workers")
    )
    kept: list[dict[str, Any]] = []
    order = {"lock": str(tmp_path / "turn"), "workers": 3, "seconds": 0.01}
    found = online_pipeline.measure(
        order, 0.4, tmp_path, lambda _: None, lambda so_far: kept.append(deepcopy(so_far))
    )
    assert events == ["3 workers stopped", "server stopped"]
    names = ["training", "extraction", "in turn", "side by side"]
    assert [list(one["arms"]) for one in kept] == [names[: n + 1] for n in range(4)]
    assert all(one["unfinished"] for one in kept)
    assert list(found["arms"]) == names
    assert "unfinished" not in found


@pytest.fixture
def reverted() -> Iterator[None]:
    """The command applies patches to its process, which here is the tests'."""
    yield
    revert()


@pytest.mark.usefixtures("reverted")
def test_a_share_at_which_vllm_does_not_start_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(_order: Any, share: float, *given: Any) -> dict[str, Any]:
        if share < 0.5:
            raise ServerError("vLLM server extraction did not start: too small.")
        if share > 0.8:
            given[-1]({"share": share, "arms": {"training": {}}, "unfinished": True})
            raise ServerError("vLLM server extraction is gone.")
        return {"share": share, "arms": {}}

    monkeypatch.setattr(online_pipeline, "Step", lambda *_: None)
    monkeypatch.setattr(online_pipeline, "measure", measured)
    with pytest.raises(typer.Exit) as ended:
        online_pipeline.main(
            share=[0.4, 0.7, 0.9], workers=1, seconds=1, tokens=64, rows=2, length=8, attention="",
            divide=16, layers=8, fp8=False, out=tmp_path / "result.json",
        )  # fmt: skip
    assert ended.value.exit_code == 1
    found = json.loads((tmp_path / "result.json").read_text())["shares"]
    assert found == [
        {"share": 0.4, "error": "vLLM server extraction did not start: too small."},
        {"share": 0.7, "arms": {}},
        {
            "share": 0.9, "arms": {"training": {}}, "unfinished": True,
            "error": "vLLM server extraction is gone.",
        },
    ]  # fmt: skip
    assert "share 0.4: vLLM server" in capsys.readouterr().err
