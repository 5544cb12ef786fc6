"""The miniature's `train`, killed three times: `all` then finishes with the weights of a run that
was left alone. Real vLLM, real training, SIGKILL to the recipe's own process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speculators_patches.checkpointing import names, reading
from tests.e2e.test_miniature import ROOT, run_all

KILLS = 3


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; that of $MINIATURE_RUN if given (made with seed 0 by this very commit)."""
    given = os.environ.get("MINIATURE_RUN")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("left_alone")
    done = run_all(folder, 0)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def newest_step(checkpoints: Path) -> int:
    found = reading.records(checkpoints / names.STORE)
    return found[0].step if found else 0


@pytest.mark.e2e
@pytest.mark.nightly
def test_train_killed_three_times_ends_with_the_same_weights(
    left_alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(
        left_alone, run, symlinks=True,
        ignore=lambda folder, _: {"train", "calibrate", "bench", "serve", "hidden_states", ".lock"}
        if Path(folder) == left_alone else set(),
    )  # fmt: skip
    checkpoints = run / "train" / "checkpoints"
    argv = [
        sys.executable, "-m", "recipes.gemma4_abliterated", "train", "--run-dir", str(run),
        "--set", "checkpoint_every_steps=4",
    ]  # fmt: skip
    resumed_from = []
    for _ in range(KILLS):
        before = newest_step(checkpoints)
        resumed_from.append(before)
        with (tmp_path / "recipe.log").open("ab") as log:
            process = subprocess.Popen(
                argv, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )
        try:
            until = time.monotonic() + 600
            while newest_step(checkpoints) < before + 12:
                assert process.poll() is None, (tmp_path / "recipe.log").read_text()[-3000:]
                assert time.monotonic() < until
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.wait(30)
        time.sleep(3)  # what it started sees that it is gone, and ends
    assert len(set(resumed_from)) == KILLS, "every kill came after new checkpoints"

    done = run_all(run, 0)
    assert done.returncode == 0, done.stderr[-4000:]
    said = (run / "logs" / "train.log").read_text(errors="replace")
    assert said.count("resuming from ckpt-") >= KILLS
    theirs, ours = (
        folder / "train" / "checkpoints" / "2" / "model.safetensors" for folder in (left_alone, run)
    )
    assert ours.read_bytes() == theirs.read_bytes()

    # What `export` writes is what `bench` has just served, and upstream's class loads it.
    exported = tmp_path / "exported"
    command = [sys.executable, "-m", "speculators_patches", "checkpoints", "export"]
    subprocess.run([*command, str(checkpoints), str(exported)], cwd=ROOT, check=True, timeout=300)
    assert (exported / "model.safetensors").read_bytes() == ours.read_bytes()
    code = (
        "import sys; from speculators.models.eagle3 import Eagle3DraftModel as M; "
        "m = M.from_pretrained(sys.argv[1]); print(sum(p.numel() for p in m.parameters()))"
    )
    loads = [sys.executable, "-c", code, str(exported)]
    said = subprocess.run(loads, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    assert int(said.stdout.split()[-1]) > 100_000
