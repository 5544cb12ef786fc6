"""SIGKILL of a real training process: inside every phase of publishing, and at random moments."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speculators_patches.checkpointing import failpoints, names, reading

TOTAL, EVERY = 24, 2
POINTS = [p for p in failpoints.POINTS if not p.startswith(("report.", "sweep."))]


def train(root: Path, failpoint: str = "") -> subprocess.Popen[str]:
    root.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.faults.checkpoint_process",
            str(root),
            str(TOTAL),
            str(EVERY),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, failpoints.VARIABLE: failpoint, "OMP_NUM_THREADS": "1"},
    )


def finish(root: Path) -> dict[str, object]:
    process = train(root)
    process.communicate(timeout=120)
    assert process.returncode == 0
    result: dict[str, object] = json.loads((root / "result.json").read_text())
    return result


def losses(root: Path) -> dict[int, set[str]]:
    """Every loss ever logged, by step: a set with one member if each replay was exact."""
    result: dict[int, set[str]] = {}
    for line in (root / "losses").read_text().splitlines():
        step, loss = line.split()
        result.setdefault(int(step), set()).add(loss)
    return result


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], object]:
    root = tmp_path_factory.mktemp("uninterrupted")
    return finish(root), losses(root)


def check_end(root: Path, uninterrupted: tuple[dict[str, object], object]) -> None:
    assert (finish(root), losses(root)) == uninterrupted
    saves = root / "saves"
    assert [r.step for r in reading.records(saves) if not r.problem][0] == TOTAL
    assert not [p for p in saves.iterdir() if (n := names.parse(p.name)) and n.hidden]


def test_kill_in_every_phase_of_publishing(
    tmp_path: Path, uninterrupted: tuple[dict[str, object], object]
) -> None:
    """One run, killed once in each phase (each life saves a few times first), ends bitwise equal."""
    before = 0
    for number, point in enumerate(POINTS):
        root = tmp_path / str(number % 2)  # two runs take turns, so that each has steps left
        # Passed 1 (2 for a piece: a torn file) + 1 time per save: the second save is the one killed.
        nth = 4 if point.endswith(".chunk") else 2
        process = train(root, f"{point}=kill@{nth}")
        process.communicate(timeout=120)
        if process.returncode == 0:  # too near the end to reach it: start over
            for path in root.rglob("*"):
                if path.is_file():
                    path.unlink()
            process = train(root, f"{point}=kill@{nth}")
            process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, point
        record, passed = reading.newest(root / "saves")
        assert record is not None, point
        assert not passed, (point, passed)
        before += 1
    assert before == len(POINTS)
    for root in sorted(tmp_path.iterdir()):
        check_end(root, uninterrupted)


def soak(root: Path, kills: int, seed: int) -> int:
    """Kill `kills` lives of one run after random delays; how many died mid-save."""
    rng = random.Random(seed)
    mid_save = 0
    for _ in range(kills):
        process = train(root, f"tensors.chunk=sleep:{rng.random() * 0.02}")
        assert process.stdout is not None
        process.stdout.readline()  # it has resumed: from here on the delay counts
        time.sleep(rng.random() * 0.25)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
        mid_save += any(
            (n := names.parse(p.name)) is not None and n.hidden == "staging"
            for p in (root / "saves").iterdir()
        )
    return mid_save


def test_random_kills(tmp_path: Path, uninterrupted: tuple[dict[str, object], object]) -> None:
    soak(tmp_path, kills=4, seed=1)
    check_end(tmp_path, uninterrupted)


@pytest.mark.nightly
def test_two_hundred_random_kills(
    tmp_path: Path, uninterrupted: tuple[dict[str, object], object]
) -> None:
    mid_save = sum(soak(tmp_path / str(i), kills=10, seed=i) for i in range(20))
    for i in range(20):
        check_end(tmp_path / str(i), uninterrupted)
    assert mid_save > 0
