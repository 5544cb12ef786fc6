"""Resumed training is bitwise equal to training that never stopped."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speculators_patches.checkpointing.errors import CheckpointError, NotSameRunError
from speculators_patches.checkpointing.fingerprint import Field
from speculators_patches.checkpointing.policy import When
from speculators_patches.checkpointing.run import RunCheckpoints
from speculators_patches.checkpointing.state import TrainingState
from tests.unit.checkpoint_run import DTYPES, OPTIMIZERS, Run, at, build, checkpoints, raw

TOTAL = 12


def save_at(root: Path, run: Run, step: int, **extra: Any) -> None:
    with checkpoints(root, run) as saves:
        assert saves.save(at(step), "test", extra=lambda: extra, commit_s=60)


def resume(root: Path, run: Run) -> int:
    with checkpoints(root, run) as saves:
        found = saves.find()
        assert found is not None
        saves.restore(found)
        torch.randn(7)  # as a DataLoader's iterator would draw
        saves.restore_rng(found)
        return found.cursor.global_step


@settings(max_examples=40, deadline=None)
@given(
    step=st.integers(0, TOTAL),
    optimizer=st.sampled_from(OPTIMIZERS),
    dtype=st.sampled_from(DTYPES),
)
def test_resumed_from_any_step_is_bitwise_equal(step: int, optimizer: str, dtype: str) -> None:
    whole = build(optimizer, dtype)
    losses = whole.train(TOTAL)
    with tempfile.TemporaryDirectory() as folder:
        first = build(optimizer, dtype)
        start = first.train(step)
        save_at(Path(folder), first, step)
        second = build(optimizer, dtype, draws=5)
        assert resume(Path(folder), second) == step
    assert second.bits() == first.bits()
    assert start + second.train(TOTAL - step) == losses
    assert second.bits() == whole.bits()


def test_resume_of_a_resume_is_bitwise_equal(tmp_path: Path) -> None:
    whole = build()
    losses = whole.train(9)
    run, got = build(), []
    for step in (3, 6, 9):
        got += run.train(3)
        save_at(tmp_path, run, step)
        run = build()
        assert resume(tmp_path, run) == step
    assert got == losses
    assert run.bits() == whole.bits()


def test_saving_changes_nothing_and_the_snapshot_does_not_follow_training(tmp_path: Path) -> None:
    whole = build()
    losses = whole.train(TOTAL)
    run = build()
    with checkpoints(tmp_path, run, when=When(every_steps=1, every_minutes=None)) as saves:
        got = []
        for step in range(1, TOTAL + 1):
            got += run.train(1)
            saves.step(at(step))
    assert got == losses
    assert run.bits() == whole.bits()
    again = build()
    step = resume(tmp_path, again)
    assert again.train(TOTAL - step) == losses[step:]


def test_live_objects_that_have_trained_already_are_put_back_to_the_start(tmp_path: Path) -> None:
    whole = build()
    save_at(tmp_path, build(), 0)
    losses = whole.train(4)
    stale = build()
    stale.train(3)
    # A counter that the checkpoint knows as not yet changed can't be put back: never silently.
    with pytest.raises(NotSameRunError, match=r"frozen tensor 'norm.num_batches_tracked' differs"):
        resume(tmp_path, stale)
    stale.model.norm.reset_running_stats()
    assert resume(tmp_path, stale) == 0
    assert all(not optimizer.state for optimizer in stale.optimizers)
    assert stale.train(4) == losses
    assert stale.bits() == whole.bits()


def test_precisions_and_counters_are_kept(tmp_path: Path) -> None:
    run = build("lion-fp32", "bfloat16")
    run.train(3)
    save_at(tmp_path, run, 3)
    again = build("lion-fp32", "bfloat16")
    resume(tmp_path, again)
    entry = again.optimizers[0].state[again.model.fc.weight]
    assert entry["mean"].dtype == torch.float32
    assert entry["count"] == 3
    assert type(entry["count"]) is int
    assert type(again.optimizers[0].param_groups[0]["betas"]) is tuple


def test_only_what_trains_is_stored(tmp_path: Path) -> None:
    from safetensors import safe_open

    run = build()
    run.train(2)
    save_at(tmp_path, run, 2)
    (path,) = tmp_path.glob("ckpt-*/rank-00000.safetensors")
    with safe_open(path, framework="pt") as file:
        stored = {name for name in file.keys() if name.startswith("model/")}  # noqa: SIM118
    # BatchNorm's statistics change without a gradient; the embedding and t2d do not change.
    assert stored == {
        "model/fc.weight",
        "model/fc.bias",
        "model/out.weight",
        "model/norm.weight",
        "model/norm.bias",
        "model/norm.running_mean",
        "model/norm.running_var",
        "model/norm.num_batches_tracked",
    }


def test_a_frozen_tensor_that_changed_is_stored_and_stays_so(tmp_path: Path) -> None:
    run = build()
    state = run.state
    with torch.no_grad():
        run.model.embed.weight.mul_(2)
    with RunCheckpoints(tmp_path, state, [], when=When(None, None)) as saves:
        assert saves.save(at(0), "test", commit_s=60)
    again = build()
    second = again.state
    for _ in range(2):
        with RunCheckpoints(tmp_path, second, [], when=When(None, None)) as saves:
            saves.restore(saves.find())  # type: ignore[arg-type]
            assert saves.save(at(0), "test", commit_s=60)
    assert raw(again.model.embed.weight) == raw(run.model.embed.weight)


def test_another_frozen_tensor_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    run = build()
    run.train(2)
    save_at(tmp_path, run, 2)
    other = build()
    with torch.no_grad():
        other.model.t2d[5] = ~other.model.t2d[5]  # type: ignore[index,operator]
    other = Run(other.model, other.optimizers, other.schedulers)
    before = other.bits()
    with pytest.raises(NotSameRunError, match=r"frozen tensor 't2d' differs"):
        resume(tmp_path, other)
    assert other.bits() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda: build("adamw"), r"optimizers are \['Muon', 'AdamW'\], these are \['AdamW'\]"),
        (lambda: build(dtype="float32"), r"'out.weight' is torch.bfloat16 .* torch.float32"),
        (lambda: _without_scheduler(), "has 2 schedulers, this run has 1"),
        (lambda: _unfrozen(), "'embed.weight' changes while training; the checkpoint"),
        (lambda: _reordered(), "drives other parameters"),
    ],
)
def test_other_live_objects_are_refused(tmp_path: Path, change: Any, sentence: str) -> None:
    run = build()
    run.train(1)
    save_at(tmp_path, run, 1)
    other = change()
    before = other.bits()
    with pytest.raises(NotSameRunError, match=sentence):
        resume(tmp_path, other)
    assert other.bits() == before


def _without_scheduler() -> Run:
    run = build()
    return Run(run.model, run.optimizers, run.schedulers[:1])


def _unfrozen() -> Run:
    run = build()
    run.model.embed.weight.requires_grad_(True)
    return Run(run.model, run.optimizers, run.schedulers)


def _reordered() -> Run:
    run = build()
    run.optimizers[0].param_groups[0]["params"].reverse()
    return run


def test_another_fingerprint_is_refused_naming_field_values_and_flag(tmp_path: Path) -> None:
    run = build()
    save_at(tmp_path, run, 0)
    with RunCheckpoints(tmp_path, build().state, [Field("data.seed", 1)]) as saves:
        with pytest.raises(NotSameRunError) as refusal:
            saves.find()
        assert "data.seed was 0 in the checkpoint and is 1 now" in str(refusal.value)
        assert "--resume-despite data.seed" in str(refusal.value)
        found = saves.find(despite=["data.seed"])
        assert found is not None
        assert [d.name for d in found.differences] == ["data.seed"]


def test_settings_of_the_live_optimizers_can_be_kept(tmp_path: Path) -> None:
    run = build("adamw")
    run.train(3)
    save_at(tmp_path, run, 3)
    other = build("adamw")
    other.optimizers[0].param_groups[0]["lr"] = 0.125
    with checkpoints(tmp_path, other) as saves:
        saves.restore(saves.find(), settings="current")  # type: ignore[arg-type]
    assert other.optimizers[0].param_groups[0]["lr"] == 0.125
    moments = [r.optimizers[0].state[r.model.fc.weight]["exp_avg"] for r in (run, other)]
    assert raw(moments[0]) == raw(moments[1])


def test_extra_comes_back_with_its_types(tmp_path: Path) -> None:
    extra = {"best": float("inf"), "t": (1, 2.5), "tensor": torch.tensor([1.5, float("nan")])}
    run = build()
    save_at(tmp_path, run, 0, **extra)
    with checkpoints(tmp_path, build()) as saves:
        got = saves.restore(saves.find())  # type: ignore[arg-type]
    assert got["best"] == float("inf")
    assert got["t"] == (1, 2.5)
    assert raw(got["tensor"]) == raw(extra["tensor"])  # type: ignore[arg-type]


def test_state_that_needs_pickle_is_refused_by_name(tmp_path: Path) -> None:
    run = build()
    with checkpoints(tmp_path, run) as saves, pytest.raises(CheckpointError, match="extra/thing"):
        saves.save(at(0), "test", extra=lambda: {"thing": object()})


def test_generators_come_back(tmp_path: Path) -> None:
    run = build()
    save_at(tmp_path, run, 0)
    random.gauss(0, 1)
    first = random.random(), np.random.randn(), torch.rand(3).tolist()
    resume(tmp_path, run)
    random.gauss(0, 1)
    assert (random.random(), np.random.randn(), torch.rand(3).tolist()) == first


def test_a_stranger_in_the_optimizer_is_refused() -> None:
    run = build("lion-fp32")
    run.optimizers[0].add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    with pytest.raises(CheckpointError, match=r"shape \(2,\) that is not the model's"):
        TrainingState(run.model, run.optimizers).capture()
