"""Every byte of every file of a checkpoint matters: flips, truncation, loss, swapped files."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from speculators_patches.checkpointing import reading
from tests.unit.checkpoint_run import at, build, checkpoints

FILES = ("manifest.json", "origin.json", "rank-00000.json", "rank-00000.safetensors")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    run = build()
    with checkpoints(root, run) as saves:
        for step in (1, 2):
            run.train(1)
            assert saves.save(at(step), "epoch", commit_s=60)
    return root


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "store")


def newest(root: Path) -> Path:
    return reading.records(root)[0].path


def assert_fallen_back(root: Path, file: str) -> None:
    record, passed = reading.newest(root)
    assert record is not None
    assert record.step == 1
    (one,) = passed
    assert one.name == newest(root).name
    assert file in one.reason
    assert newest(root).is_dir()


@pytest.mark.parametrize("file", FILES)
def test_flipped_bits_are_named_and_passed_over(store: Path, file: str) -> None:
    path = newest(store) / file
    whole = path.read_bytes()
    rng = random.Random(file)
    positions = {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(60))}
    for position in positions:
        torn = bytearray(whole)
        torn[position] ^= 1 << rng.randrange(8)
        path.write_bytes(torn)
        assert_fallen_back(store, file)
    path.write_bytes(whole)
    assert reading.newest(store)[0].step == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("file", FILES)
def test_truncated_grown_emptied_and_lost_files_are_named(store: Path, file: str) -> None:
    path = newest(store) / file
    whole = path.read_bytes()
    for torn in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\0", bytes(len(whole))):
        path.write_bytes(torn)
        assert_fallen_back(store, file)
    path.unlink()
    assert_fallen_back(store, file)
    path.mkdir()
    assert_fallen_back(store, file)


def test_a_file_of_another_checkpoint_is_noticed(store: Path) -> None:
    other = reading.records(store)[1].path
    shutil.copy(other / "rank-00000.safetensors", newest(store) / "rank-00000.safetensors")
    assert_fallen_back(store, "rank-00000.safetensors")


def test_a_link_in_place_of_a_file_is_noticed(store: Path, tmp_path: Path) -> None:
    path = newest(store) / "rank-00000.json"
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert_fallen_back(store, "rank-00000.json")


def test_a_copied_folder_under_another_commits_name_is_noticed(store: Path) -> None:
    shutil.copytree(newest(store), store / "ckpt-000009-step-00000002")
    record, passed = reading.newest(store)
    assert record is not None
    assert record.name == "ckpt-000002-step-00000002"
    assert "belongs to ckpt-000002-step-00000002" in passed[0].reason


def test_altered_between_find_and_restore_is_noticed(store: Path) -> None:
    run = build()
    before = run.bits()
    with checkpoints(store, run) as saves:
        found = saves.find()
        assert found is not None
        path = found.record.path / "rank-00000.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(reading.CorruptError, match=r"rank-00000\.safetensors is altered"):
            saves.restore(found)
    assert run.bits() == before
