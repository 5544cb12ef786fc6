"""What extraction and training say together."""

from __future__ import annotations

import json
from collections.abc import Iterator
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

    import torch

    batch = {"document_ids": torch.tensor([[0, 0, 1, -1]])}
    found = timed(lambda _: time.sleep(0.05), iter([batch] * 5), 0.01)
    assert found["steps"] == 1
    assert found["tokens_s"] > 0


@pytest.fixture
def reverted() -> Iterator[None]:
    """The command applies patches to its process, which here is the tests'."""
    yield
    revert()


@pytest.mark.usefixtures("reverted")
def test_a_share_at_which_vllm_does_not_start_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(_order: Any, share: float, *_: Any) -> dict[str, Any]:
        if share < 0.5:
            raise ServerError("vLLM server extraction did not start: too small.")
        return {"share": share, "arms": {}}

    monkeypatch.setattr(online_pipeline, "Step", lambda *_: None)
    monkeypatch.setattr(online_pipeline, "measure", measured)
    with pytest.raises(typer.Exit) as ended:
        online_pipeline.main(
            share=[0.4, 0.7], workers=1, seconds=1, tokens=64, rows=2, length=8, attention="",
            divide=16, layers=8, fp8=False, out=tmp_path / "result.json",
        )  # fmt: skip
    assert ended.value.exit_code == 1
    found = json.loads((tmp_path / "result.json").read_text())["shares"]
    assert found == [
        {"share": 0.4, "error": "vLLM server extraction did not start: too small."},
        {"share": 0.7, "arms": {}},
    ]
    assert "share 0.4: vLLM server" in capsys.readouterr().err
