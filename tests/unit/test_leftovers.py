"""What is swept from a folder of hidden states, and what never is."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from recipes.vllm import leftovers

OLD_S, LIMIT_S = 1000.0, 300.0
OURS = (
    "cmpl-0a1b-0-77.safetensors",
    "chatcmpl-ff.safetensors",
    "cmpl-0a1b-0-77.safetensors.4711.tmp",
    ".room-4711.tmp",
    ".tmpfbj27N",  # of safetensors in a vLLM that was killed while it wrote
)
OTHERS = (
    "hs_3.safetensors",  # the trainer's cache
    "hs_3.safetensors.lock",
    "model.safetensors",
    "cmpl-notes.txt",
    "cmpl-0a1b.safetensors.bak",
    "ballast",
    ".tmp-notes",
)


def put(folder: Path, name: str, age_s: float) -> Path:
    path = folder / name
    path.write_bytes(b"x" * 10)
    then = time.time() - age_s
    os.utime(path, (then, then))
    return path


def test_old_files_of_requests_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (*OURS, *OTHERS):
        put(tmp_path, name, OLD_S)
    young = put(tmp_path, "cmpl-young.safetensors", LIMIT_S - 60)
    put(tmp_path, "cmpl-0a1b-0-77.safetensors.lock", OLD_S)
    assert leftovers.sweep(tmp_path, LIMIT_S) == len(OURS) + 1
    assert {path.name for path in tmp_path.iterdir()} == {*OTHERS, young.name}


def test_what_a_writer_has_locked_stays_until_it_lets_go(tmp_path: Path) -> None:
    path = put(tmp_path, OURS[0], OLD_S)
    lock = put(tmp_path, OURS[0] + ".lock", OLD_S)
    with lock.open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert leftovers.sweep(tmp_path, LIMIT_S) == 0
    assert leftovers.sweep(tmp_path, LIMIT_S) == 2
    assert not path.exists()
    assert not lock.exists()


def test_a_file_that_is_being_read_stays_readable(tmp_path: Path) -> None:
    path = put(tmp_path, OURS[0], OLD_S)
    with path.open("rb") as reader:
        assert leftovers.sweep(tmp_path, LIMIT_S) == 1
        assert reader.read() == b"x" * 10


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert leftovers.sweep(tmp_path / "none", LIMIT_S) == 0
    assert leftovers.use(tmp_path / "none") == leftovers.DiskUse(0, 0, 0)


def test_its_use_is_told(tmp_path: Path) -> None:
    for name in ("hs_1.safetensors", OURS[0], "ballast"):
        put(tmp_path, name, 0)
    found = leftovers.use(tmp_path)
    assert (found.files, found.bytes) == (2, 20)
    assert str(found).startswith("2 files, 20 B (")


def test_sizes_are_in_the_unit_that_fits() -> None:
    found = [leftovers.size(count) for count in (999, 1000, 22_500_000, 72.54e9)]
    assert found == ["999 B", "1 KB", "22 MB", "72.5 GB"]


@given(st.floats(0, 1e15))
def test_sizes_are_short(count: float) -> None:
    number, unit = leftovers.size(count).split()
    assert unit in ("B", "KB", "MB", "GB")
    assert unit == "GB" or float(number) <= 1000
