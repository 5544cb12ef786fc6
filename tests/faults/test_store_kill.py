"""SIGKILL of a real training process: inside every phase of publishing, and at random moments."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speculators_patches.checkpointing import failpoints, names, reading
from tests.faults.checkpoint_process import TOTAL, Lives

POINTS = [p for p in failpoints.POINTS if not p.startswith(("report.", "sweep."))]
End = tuple[dict[str, object], dict[int, set[str]]]


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    started = Lives()
    yield started
    started.close()


@pytest.fixture
def root() -> Iterator[Path]:
    """In memory where possible: what a SIGKILL leaves does not depend on the file system."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None))
    yield path
    shutil.rmtree(path)


def losses(root: Path) -> dict[int, set[str]]:
    """Every loss ever logged, by step: sets of one if each replay was exact."""
    result: dict[int, set[str]] = {}
    for line in (root / "losses").read_text().splitlines():
        step, loss = line.split()
        result.setdefault(int(step), set()).add(loss)
    return result


def finish(lives: Lives, root: Path) -> End:
    lives.begin(root)
    assert lives.end() == 0
    return json.loads((root / "result.json").read_text()), losses(root)


@pytest.fixture(scope="module")
def uninterrupted(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> End:
    return finish(lives, tmp_path_factory.mktemp("uninterrupted"))


def check_end(lives: Lives, root: Path, uninterrupted: End) -> None:
    assert finish(lives, root) == uninterrupted
    found = reading.records(root / "saves")
    assert [r.problem for r in found] == [""] * 3  # as many as retention keeps, all whole
    assert found[0].step == TOTAL
    hidden = [p for p in (root / "saves").iterdir() if (n := names.parse(p.name)) and n.hidden]
    assert not hidden


@pytest.mark.parametrize("point", POINTS)
def test_kill_while_publishing_keeps_the_previous_step(
    lives: Lives, root: Path, uninterrupted: End, point: str
) -> None:
    # The second save dies; in a piece: the second piece, which leaves a torn file.
    nth = 1 if point.startswith("prune.") else 4 if point.endswith(".chunk") else 2
    lives.begin(root, f"{point}=kill@{nth}", wait=True)
    assert lives.end() == -signal.SIGKILL
    record, passed = reading.newest(root / "saves")
    assert record is not None
    assert not passed
    if not point.startswith("prune."):
        renamed = point.startswith(("commit.", "pointer."))
        assert record.step == (2 if renamed else 1)
    check_end(lives, root, uninterrupted)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_kill_while_sweeping_up_after_a_kill(
    lives: Lives, root: Path, uninterrupted: End, nth: int
) -> None:
    lives.begin(root, "manifest.synced=kill@2", wait=True)
    assert lives.end() == -signal.SIGKILL
    # It dies before it says where it resumes from: read by hand.
    lives.begin_and_die(root, f"sweep.unlinked=kill@{nth}")
    check_end(lives, root, uninterrupted)


def soak(lives: Lives, root: Path, kills: int, seed: int) -> int:
    """Kill `kills` lives of one run after random delays; how many died while saving.

    The delays decide where it dies, not whether the test passes.
    """
    rng = random.Random(seed)
    while_saving = 0
    for _ in range(kills):  # some may come too late
        pid = lives.begin(root, f"tensors.chunk=sleep:{rng.random() * 0.01}")
        time.sleep(rng.random() * 0.06)
        with contextlib.suppress(ProcessLookupError):  # on a fast machine it was done by then
            os.kill(pid, signal.SIGKILL)
        assert lives.end() in (0, -signal.SIGKILL)
        found = [n for p in (root / "saves").iterdir() if (n := names.parse(p.name))]
        while_saving += any(name.hidden == "staging" for name in found)
    return while_saving


def test_random_kills(lives: Lives, root: Path, uninterrupted: End) -> None:
    soak(lives, root, kills=20, seed=1)
    check_end(lives, root, uninterrupted)


@pytest.mark.nightly
def test_two_hundred_random_kills(lives: Lives, root: Path, uninterrupted: End) -> None:
    while_saving = sum(soak(lives, root / str(i), kills=10, seed=i) for i in range(20))
    for i in range(20):
        check_end(lives, root / str(i), uninterrupted)
    assert while_saving > 10
