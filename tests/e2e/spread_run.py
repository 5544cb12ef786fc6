"""The recipe's commands on several "machines" of this one: addresses of the loopback network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from recipes import extract_stage
from recipes.config import resolve
from recipes.prepare_stage import KEPT_BY_THE_TRAINER
from recipes.run_folder import RunFolder, file_digest
from tests.faults.long_run import SAMPLES, prepare

ROOT = Path(__file__).parents[2]
# A random tiny verifier whose hidden states are extracted: nothing but trainers runs.
SETTINGS = (
    "draft_start=", "draft_vocab_size=none", "body_layers=4", "target_layers=1,2,3", "seq_len=64",
    "epochs=2", "ttt_steps=2", "hidden_states=offline", "num_workers=0", "optimizer=adamw",
    "checkpoint_every_minutes=0", "checkpoint_every_steps=2", "trainers=2", "max_restarts=2",
)  # fmt: skip


def data(folder: Path) -> Path:
    """See `long_run.prepare`; once for all runs of a test."""
    return prepare(folder)


def prepared(work: Path, folder: Path) -> RunFolder:
    """A run folder in which `prepare` is done, and the extraction."""
    recipe, _ = resolve("h100", None, _assignments(work))
    run = RunFolder(folder)
    data = run.begin("prepare", {}) / "dataset"
    shutil.copytree(work / "data", data, ignore=shutil.ignore_patterns("hidden_states"))
    source = {"rows": SAMPLES, "output": file_digest(data, KEPT_BY_THE_TRAINER)}
    run.finish("prepare", {}, 0.0, **source)
    made_of = extract_stage.made_of(recipe, source)
    states = run.begin(extract_stage.STAGE, made_of) / "hidden_states"
    shutil.copytree(work / "data" / "hidden_states", states)
    run.finish(extract_stage.STAGE, made_of, 0.0, files=SAMPLES, missing=0)
    return run


def _assignments(work: Path, *more: str) -> list[str]:
    return [f"body={work / 'verifier'}", *SETTINGS, *more]


def settings(work: Path, *more: str) -> list[str]:
    """The flags of a command."""
    return [word for one in _assignments(work, *more) for word in ("--set", one)]


def start(log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """python -m recipes.gemma4_abliterated ..., in a group of its own."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "recipes.gemma4_abliterated", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Stops a command that the test left running, and its children."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def ranks(run: RunFolder, alive_of: int) -> list[int]:
    """Processes that train in this run folder under a process, by /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        trains = str(run.root) in line and "speculators.train" in line
        if trains and b"LOCAL_RANK=" in environment and _is_below(int(entry.name), alive_of):
            found.append(int(entry.name))
    return found


def _is_below(pid: int, above: int) -> bool:
    while pid > 1:
        if pid == above:
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False


def until(
    what: Callable[[], bool], *processes: subprocess.Popen[bytes], limit: float = 120
) -> None:
    """Polls; fails if a process ends first."""
    deadline = time.monotonic() + limit
    while not what():
        for process in processes:
            assert process.poll() is None, "a command ended before the test could act"
        assert time.monotonic() < deadline, "it never came to where the test acts"
        time.sleep(0.05)


def weights(run: RunFolder) -> bytes:
    return (run.root / str(run.manifest("train")["drafter"]) / "model.safetensors").read_bytes()
