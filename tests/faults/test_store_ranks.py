"""Two ranks (DDP, FSDP2, gloo on the CPU): all commit or none, and a resume is exact on each."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from speculators_patches.checkpointing import reading
from tests.faults.checkpoint_ranks import TOTAL, Worlds

MODES = ("ddp", "fsdp")
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    started = Worlds()
    yield started
    started.close()


def outcome(root: Path) -> tuple[list[str], list[dict[str, set[str]]]]:
    """Each rank's final bits, and every loss it ever logged by step."""
    bits = [(root / f"result-{rank}.json").read_text() for rank in (0, 1)]
    logs: list[dict[str, set[str]]] = []
    for rank in (0, 1):
        log: dict[str, set[str]] = {}
        for line in (root / f"losses-{rank}").read_text().splitlines():
            step, loss = line.split()
            log.setdefault(step, set()).add(loss)
        logs.append(log)
    return bits, logs


@pytest.fixture(scope="module")
def uninterrupted(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    result = {}
    for mode in MODES:
        root = tmp_path_factory.mktemp(mode)
        assert worlds.run(root, mode) == [0, 0]
        result[mode] = outcome(root)
    return result


def steps(root: Path) -> list[int]:
    return [r.step for r in reading.records(root / "saves") if not r.problem]


KILLS = [
    # Each rank passes these once a save (pieces: more often); the second save is hit.
    (1, "tensors.written", [2]),
    (1, "tree.synced", [2]),
    (1, "report.chunk", [2]),
    (1, "report.synced", [4, 2]),
    (0, "tensors.synced", [2]),
    (0, "stage.synced", [2]),
    (0, "commit.renamed", [4, 2]),
]
# What differs between DDP and FSDP2 is what is stored, not how it is published.
ALWAYS = {("fsdp", "tensors.written"), ("fsdp", "commit.renamed")}


@pytest.mark.parametrize(
    ("mode", "rank", "point", "left"),
    [
        pytest.param(
            mode,
            *kill,
            marks=() if mode == "ddp" or (mode, kill[1]) in ALWAYS else pytest.mark.nightly,
        )
        for mode in MODES
        for kill in KILLS
    ],
)
def test_a_killed_rank_leaves_all_committed_or_none(
    worlds: Worlds,
    tmp_path: Path,
    uninterrupted: dict[str, object],
    mode: str,
    rank: int,
    point: str,
    left: list[int],
) -> None:
    nth = 4 if point.endswith("chunk") else 2
    codes = worlds.run(tmp_path, mode, **{f"rank{rank}": f"{point}=kill@{nth}"})
    assert codes[rank] == KILLED
    assert codes[1 - rank] != 0  # its peer is gone: it must not pretend to have finished
    assert steps(tmp_path) == left
    for record in reading.records(tmp_path / "saves"):
        reading.verify(record)
        assert {n for n in record.manifest.files if n.startswith("rank-00001")} == {  # type: ignore[union-attr]
            f"rank-00001.{kind}" for kind in ("safetensors", "json")
        }
    assert worlds.run(tmp_path, mode) == [0, 0]
    assert outcome(tmp_path) == uninterrupted[mode]
    assert steps(tmp_path) == [TOTAL, TOTAL - 2, TOTAL - 4]
    assert not list((tmp_path / "saves").glob(".*"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("point", ["tensors.chunk", "tree.written"])
def test_one_rank_without_space_fails_the_save_for_all_and_training_goes_on(
    worlds: Worlds, tmp_path: Path, uninterrupted: dict[str, object], rank: int, point: str
) -> None:
    nth = 4 if point.endswith("chunk") else 2
    codes = worlds.run(tmp_path, "ddp", **{f"rank{rank}": f"{point}=enospc@{nth}"})
    assert codes == [0, 0]
    assert steps(tmp_path) == [8, 6, 2]
    assert outcome(tmp_path) == uninterrupted["ddp"]
    assert not list((tmp_path / "saves").glob(".*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_spoilt_part_of_one_rank_is_written_by_none_and_told_to_all(
    worlds: Worlds, tmp_path: Path, rank: int
) -> None:
    assert worlds.run(tmp_path, "fsdp", unfit=rank) == [0, 0]
    assert steps(tmp_path) == [8, 6, 2]
    told = {(tmp_path / f"unfit-{one}").read_text() for one in (rank, 0)}
    assert told == {f"rank {rank} is spoilt"}
    assert not list((tmp_path / "saves").glob(".*"))


def test_another_world_size_is_refused(worlds: Worlds, tmp_path: Path) -> None:
    assert worlds.run(tmp_path, "ddp") == [0, 0]
    before = steps(tmp_path)
    assert worlds.run(tmp_path, "ddp", world=1) == [1]
    assert steps(tmp_path) == before
