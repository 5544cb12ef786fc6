"""`plan --launcher torchrun`, and the script that it writes run with two real ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recipes.config import resolve
from recipes.spread import launch
from recipes.spread.launch.job import Job
from speculators_patches.checkpointing import names, reading
from tests.e2e import spread_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(torch.accelerator.is_available(), reason="the ranks are two CPU processes"),
]
# Planned for a GPU; these make it a CPU's.
ON_A_CPU = ("loss_implementation=eager", 'train_extra=["--draft-attn-impl", "sdpa"]')


def script(work: Path, folder: Path) -> tuple[Path, Path]:
    """torchrun.sh for a prepared run, and where its checkpoints go."""
    run = spread_run.prepared(work, folder / "run")
    assignments = [f"body={work / 'verifier'}", *spread_run.SETTINGS, *ON_A_CPU, "max_restarts=1"]
    recipe, _ = resolve("h100", None, assignments)
    paths = launch.write("torchrun", Job(recipe, "h100", run.root, folder / "launch"))
    (found,) = (path for path in paths if path.name == "torchrun.sh")
    return found, run.stage_dir("train") / "checkpoints"


def start(path: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            ["bash", str(path)],
            env={
                **os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(spread_run.ROOT),
                "OMP_NUM_THREADS": "1", "PAUSE_S": "0", "ATTEMPTS": "2", "COLUMNS": "300",
            },
            stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def trained(checkpoints: Path) -> dict[str, bytes | int]:
    folder = checkpoints / "1"
    state = json.loads((folder / "training_state.json").read_text())
    return {"weights": (folder / "model.safetensors").read_bytes(), "step": state["global_step"]}


@pytest.mark.parametrize(
    "compared",
    [False, pytest.param(True, marks=pytest.mark.nightly)],
    ids=["ends", "ends as undisturbed"],
)
def test_the_script_trains_on_after_a_killed_rank(compared: bool, tmp_path: Path) -> None:
    work = spread_run.data(tmp_path)
    path, checkpoints = script(work, tmp_path / "disturbed")
    log = tmp_path / "log"
    process = start(path, log)
    run = spread_run.RunFolder(tmp_path / "disturbed" / "run")
    try:
        spread_run.until(lambda: bool(reading.records(checkpoints / names.STORE)), process)
        os.kill(spread_run.ranks(run, process.pid)[-1], signal.SIGKILL)
        assert process.wait(240) == 0, log.read_text()[-3000:]
    finally:
        spread_run.end(process)
    said = log.read_text()
    assert "resuming from ckpt-" in said
    assert "attempt 1 ended" not in said  # torchrun itself started the ranks again
    if not compared:
        assert trained(checkpoints)["step"]
        return
    other, undisturbed = script(work, tmp_path / "undisturbed")
    process = start(other, tmp_path / "other.log")
    try:
        assert process.wait(240) == 0
    finally:
        spread_run.end(process)
    assert trained(checkpoints) == trained(undisturbed)


@pytest.mark.nightly
def test_a_signal_ends_the_script_with_a_checkpoint_and_the_next_call_goes_on(
    tmp_path: Path,
) -> None:
    path, checkpoints = script(spread_run.data(tmp_path), tmp_path / "run")
    log = tmp_path / "log"
    process = start(path, log)
    try:
        spread_run.until(lambda: bool(reading.records(checkpoints / names.STORE)), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 143, log.read_text()[-3000:]
    finally:
        spread_run.end(process)
    assert reading.records(checkpoints / names.STORE)[0].tags == ("shutdown",)
    assert start(path, log).wait(240) == 0
    assert trained(checkpoints)["step"]
