"""A train stage that was begun with another number of trainers is neither lost nor continued."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recipes import stages
from recipes.config import Recipe, resolve
from recipes.display import Display
from recipes.process import StageError
from recipes.run_folder import RunFolder
from recipes.servers import ServerPool
from recipes.stage import Context


class Began(Exception):
    """In place of training."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    @contextmanager
    def instead(ctx: Context, name: str, made_from: dict[str, Any]) -> Iterator[None]:
        ctx.run.begin(name, made_from)
        raise Began
        yield

    monkeypatch.setattr(stages, "stage", instead)
    with tempfile.TemporaryDirectory() as folder:
        found = RunFolder(Path(folder))
        found.begin("prepare", {})
        found.finish("prepare", {}, 0.0, rows=100, output="rows")
        yield found


def train(run: RunFolder, *settings: str) -> None:
    recipe, _ = resolve("h100", None, list(settings))
    display = Display()
    stages.train(Context(recipe, run, display, ServerPool(run.root / "logs", display.note)))


def begin(run: RunFolder, *settings: str) -> None:
    with pytest.raises(Began):
        train(run, *settings)
    # What the first commit leaves.
    (run.stage_dir("train") / "checkpoints" / "steps" / "ckpt-000001").mkdir(
        parents=True, exist_ok=True
    )


@pytest.mark.parametrize(
    ("before", "now", "advice"),
    [
        (["trainers=2"], ["trainers=4"], "--set trainers=2 --set fsdp=False goes on with it"),
        (["trainers=2"], [], "--set trainers=2 --set fsdp=False goes on with it"),
        ([], ["trainers=2"], "--set trainers=1 --set fsdp=False goes on with it"),
        (["trainers=2"], ["trainers=2", "fsdp=true"], "--set trainers=2 --set fsdp=False"),
    ],
)
def test_another_number_is_refused_and_the_first_goes_on(
    run: RunFolder, before: list[str], now: list[str], advice: str
) -> None:
    begin(run, *before)
    with pytest.raises(StageError, match=r"^[^\n]+$") as refused:
        train(run, *now)
    assert advice in str(refused.value)
    assert (run.stage_dir("train") / "checkpoints" / "steps" / "ckpt-000001").is_dir()
    with pytest.raises(Began):
        train(run, *before)
    assert (run.stage_dir("train") / "checkpoints" / "steps" / "ckpt-000001").is_dir()


def test_before_the_first_checkpoint_and_after_the_end_the_number_may_change(
    run: RunFolder,
) -> None:
    with pytest.raises(Began):
        train(run, "trainers=2")
    begin(run, "trainers=4")
    made_from = json.loads((run.stage_dir("train") / "made_from.json").read_text())
    assert made_from["trainers"] == 4
    run.finish("train", made_from, 0.0, output="x", drafter="x")
    with pytest.raises(Began):
        train(run, "trainers=2")
    assert len(list(run.root.glob("train.superseded-*"))) == 1  # the other came back


def test_another_learning_rate_is_other_work_as_ever(run: RunFolder) -> None:
    begin(run, "trainers=2")
    begin(run, "trainers=4", "lr=0.5")
    assert (run.root / "train.superseded-1" / "checkpoints").is_dir()


def test_one_trainer_is_recorded_as_it_always_was(run: RunFolder) -> None:
    """Finished runs of earlier versions stay finished."""
    begin(run)
    made_from = json.loads((run.stage_dir("train") / "made_from.json").read_text())
    assert not {"trainers", "fsdp", "hosts"} & set(made_from)
    assert Recipe().trainers == 1


def test_every_trainer_needs_a_row_to_validate_on(run: RunFolder) -> None:
    with pytest.raises(StageError, match="10 rows are held out for validation, and each of"):
        train(run, "trainers=16")
