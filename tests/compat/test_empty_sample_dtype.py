"""empty_sample_dtype on the real speculators 0.5.0: crash without it, training with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat.running import PATCHED, last_json, python

STEP = "tests.compat.probes.dtype_step"
PROPERTY = "tests.compat.probes.dtype_property"
ONLY = ("--only", "empty_sample_dtype", "--module")

pytestmark = pytest.mark.matrix


def test_a_batch_that_timed_out_ends_an_unpatched_run(
    laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out("0.5.0")
    done = python("0.5.0", "-m", STEP, tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("Request timed out.") >= 2, "both samples of the batch timed out"
    assert "self.fc(hidden_states)" in done.stderr
    assert "to have the same dtype, but got: float != c10::BFloat16" in done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_training_survives_a_batch_that_timed_out(
    laid_out: Callable[[str], Path], tmp_path: Path, workers: int
) -> None:
    laid_out("0.5.0")
    done = python("0.5.0", *PATCHED, *ONLY, STEP, "--", tmp_path, workers)
    result = last_json(done)
    assert result["prompts"] == 2, "the server swallowed both prompts of the batch"
    assert result["steps"] == 3
    first, empty, last = result["losses"]
    assert empty == 0.0
    assert first > 0.0 < last, "training went on with real samples"
    assert result["dtypes"][1] == result["dtypes"][0] == result["dtypes"][2]
    assert result["trained"]
    assert result["finite"]
    assert "model.safetensors" in result["saved"]


def test_every_batch_looks_like_a_real_one_whatever_fails(
    laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out("0.5.0")
    done = python("0.5.0", *PATCHED, *ONLY, PROPERTY, "--", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("held")


def test_the_property_is_false_for_unpatched_upstream(
    laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out("0.5.0")
    done = python("0.5.0", "-m", PROPERTY, tmp_path)
    assert done.returncode == 1
    assert "torch.float32" in done.stderr, done.stderr[-3000:]
