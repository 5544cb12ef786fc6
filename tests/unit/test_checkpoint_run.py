"""The training loop's view: when saves begin, how failures surface, what a resume finds."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from speculators_patches.checkpointing import failpoints, reading
from speculators_patches.checkpointing.coordinator import GATHERED_BYTES, brief
from speculators_patches.checkpointing.errors import CheckpointError, SaveFailedError, UnfitError
from speculators_patches.checkpointing.policy import Keep, When
from speculators_patches.checkpointing.writer import Writer
from tests.unit.checkpoint_run import OPTIMIZERS, at, build, checkpoints, raw

BY_STEP = When(every_steps=1, every_minutes=None)


@pytest.fixture(autouse=True)
def _disarm() -> object:
    yield
    failpoints.configure(None)


def steps(root: Path) -> list[int]:
    return [record.step for record in reading.records(root)]


def test_saves_by_steps_and_keeps_the_last_three(tmp_path: Path) -> None:
    run = build()
    with checkpoints(tmp_path, run, when=When(every_steps=2, every_minutes=None)) as saves:
        for step in range(1, 11):
            run.train(1)
            assert saves.step(at(step)) == (step % 2 == 0)
            saves.flush(60)
    assert steps(tmp_path) == [10, 8, 6]
    assert {r.tags for r in reading.records(tmp_path)} == {("steps",)}


def test_saves_by_the_clock(tmp_path: Path) -> None:
    now = [0.0]
    when = When(every_steps=None, every_minutes=1)
    with checkpoints(tmp_path, build(), when=when, clock=lambda: now[0]) as saves:
        for step, seconds in enumerate([10, 59.9, 60, 61, 119.9, 120], 1):
            now[0] = seconds
            assert saves.step(at(step)) == (seconds in (60, 120))
            saves.flush(60)
    assert steps(tmp_path) == [6, 3]


def test_best_outlives_newer_ones(tmp_path: Path) -> None:
    with checkpoints(tmp_path, build(), keep=Keep(last=1)) as saves:
        for step in range(1, 6):
            assert saves.save(at(step), "best" if step == 2 else "epoch", commit_s=60)
    assert steps(tmp_path) == [5, 2]


def test_a_slow_disk_delays_the_next_save_not_the_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A disk that answers only when told to: no clock decides this test.
    answer, writing = threading.Event(), threading.Event()
    run = build()
    with checkpoints(tmp_path, run, when=BY_STEP) as saves:
        publish = saves._write

        def slow(save: object) -> object:
            writing.set()
            assert answer.wait(60)
            return publish(save)  # type: ignore[arg-type]

        monkeypatch.setattr(saves, "_write", slow)
        began = []
        for step in range(1, 6):
            run.train(1)
            began.append(saves.step(at(step)))
            assert writing.wait(60)
        assert began == [True, False, False, False, False]
        delays = [r.message for r in caplog.records if "still being written" in r.message]
        assert len(delays) == 1
        assert "due at step 2, but the checkpoint of step 1 is still being written" in delays[0]
        answer.set()
        assert saves.flush(60)
        assert saves.step(at(6))
    assert steps(tmp_path) == [6, 1]


@pytest.mark.parametrize("error", ["enospc", "eio"])
@pytest.mark.parametrize(
    "point", ["stage.created", "tensors.chunk", "tensors.written", "tree.chunk", "manifest.synced"]
)
def test_a_failed_save_is_told_cleaned_up_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, point: str, error: str
) -> None:
    with checkpoints(tmp_path, build(), when=BY_STEP) as saves:
        assert saves.save(at(1), "epoch", commit_s=60)
        failpoints.configure(f"{point}={error}")
        assert not saves.save(at(2), "epoch", commit_s=60)
        failpoints.configure(None)
        assert saves.step(at(3))
    (told,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    words = "No space left on device" if error == "enospc" else "Input/output error"
    assert "step 2 was not saved" in told.message
    assert words in told.message
    assert "the newest checkpoint is ckpt-000001-step-00000001; training goes on" in told.message
    assert steps(tmp_path) == [3, 1]
    assert not list(tmp_path.glob(".*"))


def test_failure_after_the_rename_says_that_it_is_in_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with checkpoints(tmp_path, build()) as saves:
        failpoints.configure("commit.renamed=eio")
        assert not saves.save(at(1), "epoch", commit_s=60)
    assert "step 1 is in place as ckpt-000001-step-00000001, but the disk" in caplog.text
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("point", ["pointer.chunk", "pointer.written", "prune.renamed"])
def test_failure_after_the_commit_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, point: str
) -> None:
    with checkpoints(tmp_path, build(), keep=Keep(last=1)) as saves:
        assert saves.save(at(1), "epoch", commit_s=60)
        failpoints.configure(f"{point}=enospc")
        assert saves.save(at(2), "epoch", commit_s=60)
        failpoints.configure(None)
        assert saves.save(at(3), "epoch", commit_s=60)
    (told,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    words = "older checkpoints" if point.startswith("prune") else "LATEST"
    assert f"{words} could not be" in told.message
    assert steps(tmp_path) == [3]
    assert reading.pointed_at(tmp_path) == "ckpt-000003-step-00000003"
    with checkpoints(tmp_path, build()):
        pass  # sweeps up what the failed removal left
    assert not list(tmp_path.glob(".*"))


def test_with_raise_the_next_step_raises(tmp_path: Path) -> None:
    with checkpoints(tmp_path, build(), when=BY_STEP, on_failure="raise") as saves:
        failpoints.configure("tree.chunk=enospc")
        saves.step(at(1))
        saves._writer.flush(60)
        failpoints.configure(None)
        with pytest.raises(SaveFailedError, match=r"No space left .* checkpoint is none at all"):
            saves.step(at(2))
        assert saves.step(at(2))


def test_altered_right_after_writing_is_noticed_and_nothing_is_pruned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with checkpoints(tmp_path, build(), keep=Keep(last=1)) as saves:
        assert saves.save(at(1), "epoch", commit_s=60)
        assert saves._store is not None
        commit = saves._store.commit

        def commit_on_a_lying_disk(*args: object, **options: object) -> reading.Record:
            record = commit(*args, **options)  # type: ignore[arg-type]
            path = record.path / "rank-00000.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
            return record

        monkeypatch.setattr(saves._store, "commit", commit_on_a_lying_disk)
        assert not saves.save(at(2), "epoch", commit_s=60)
        monkeypatch.undo()
    assert "rank-00000.safetensors is altered" in caplog.text
    with checkpoints(tmp_path, build()) as saves:
        found = saves.find()
    assert found is not None
    assert found.cursor == at(1)


def test_a_torn_newest_is_named_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with checkpoints(tmp_path, build()) as saves:
        for step in (1, 2):
            assert saves.save(at(step), "epoch", meta={"best": float("inf")}, commit_s=60)
    torn = reading.records(tmp_path)[0]
    (torn.path / "rank-00000.json").unlink()
    with checkpoints(tmp_path, build()) as saves:
        found = saves.find()
    assert found is not None
    assert found.cursor == at(1)
    assert found.meta == {"best": float("inf")}
    assert found.passed_over == (reading.PassedOver(torn.name, "rank-00000.json is missing"),)
    assert f"checkpoint {torn.name} is passed over: rank-00000.json is missing" in caplog.text


def test_nothing_is_none_but_nothing_whole_is_an_error(tmp_path: Path) -> None:
    with checkpoints(tmp_path, build()) as saves:
        assert saves.find() is None
        assert saves.save(at(1), "epoch", commit_s=60)
    (tmp_path / "ckpt-000001-step-00000001" / "manifest.json").unlink()
    with (
        checkpoints(tmp_path, build()) as saves,
        pytest.raises(CheckpointError, match=r"none of the 1 checkpoints in .* is whole"),
    ):
        saves.find()


def test_flush_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with checkpoints(tmp_path, build()) as saves:
        failpoints.configure("tensors.chunk=sleep:1@1")
        saves.save(at(1), "shutdown")
        assert not saves.flush(0.05)
        assert (
            "the checkpoint of step 1 is not written after 0 s; not waiting longer" in caplog.text
        )
        assert saves.flush(60)
    assert steps(tmp_path) == [1]


def test_the_writer_takes_one_job_at_a_time_and_survives_errors() -> None:
    writer, go = Writer(), threading.Event()
    writer.submit("first", lambda: go.wait(60))
    with pytest.raises(CheckpointError, match="first is still being written"):
        writer.submit("second", lambda: None)
    assert writer.under_way is not None
    go.set()
    assert writer.flush(60)
    writer.submit("third", lambda: 1 / 0)
    assert writer.close(60)
    first, third = writer.outcomes()
    assert (first.label, first.result, first.error) == ("first", True, None)
    assert isinstance(third.error, ZeroDivisionError)
    writer.submit("after close", lambda: 5)
    assert writer.close(60)
    assert [o.result for o in writer.outcomes()] == [5]


def test_what_must_not_be_saved_is_not_written_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    looked_at: list[str] = []

    def check(tensors: Mapping[str, torch.Tensor]) -> None:
        looked_at.extend(tensors)
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UnfitError(f"{name} is spoilt")

    run = build()
    run.train(1)
    with checkpoints(tmp_path, run, check=check) as saves:
        assert saves.save(at(1), "epoch", commit_s=60)
        assert {"model/fc.weight", "model/out.weight"} <= set(looked_at)
        assert not saves.unfit()
        with torch.no_grad():
            run.model.fc.weight[0, 0] = float("nan")
        assert not saves.save(at(2), "epoch", commit_s=60)
        assert saves.unfit() == "model/fc.weight is spoilt"
        assert "model/fc.weight is spoilt" in caplog.text
        assert not saves.flush(60)  # heard of before, and still true
    assert steps(tmp_path) == [1]
    assert not list(tmp_path.glob(".staging-*"))


def test_what_ranks_tell_each_other_always_fits() -> None:
    for text in ("x" * 10_000, "\U0001f984" * 10_000, "\x00" * 10_000):
        assert len(json.dumps({"failure": brief(text)}).encode()) <= GATHERED_BYTES - 1000


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_that_comes_before_the_copy_waits_for_it(kind: str, tmp_path: Path) -> None:
    """The writer does not get to run: the optimizer itself takes the copy before it steps."""
    run = build(kind)
    run.train(2)
    before = {name: raw(p) for name, p in run.model.named_parameters() if p.requires_grad}
    snapshot = run.state.capture()
    run.train(1)
    after = {name: raw(p) for name, p in run.model.named_parameters() if p.requires_grad}
    assert after != before
    taken = snapshot.tensors()
    assert {name: raw(taken[f"model/{name}"]) for name in before} == before


def test_a_weight_changed_by_something_else_fails_the_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = build()
    run.train(1)
    with checkpoints(tmp_path, run) as saves:
        real = run.state.capture

        def capture(extra: object = None) -> object:
            snapshot = real()
            with torch.no_grad():
                run.model.fc.weight.mul_(2)  # before the writer has copied it
            return snapshot

        run.state.capture = capture  # type: ignore[method-assign, assignment]
        assert not saves.save(at(1), "epoch", commit_s=60)
    assert "'model/fc.weight' changed while it was being copied" in caplog.text
    assert steps(tmp_path) == []
