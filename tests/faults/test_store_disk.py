"""A full disk, for real: a tmpfs a few pages larger than the checkpoints on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from speculators_patches.checkpointing import reading
from tests.unit.checkpoint_run import at, build, checkpoints


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """1 MiB tmpfs. Needs the right to mount; the ENOSPC failpoints cover the rest."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take all the space but `leave` bytes."""
    path = disk / "somebody_elses_data"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    os.truncate(path, max(0, path.stat().st_size - leave))
    return path


# A checkpoint of the small run takes nine tmpfs pages: the disk is full at the folder's mark, in
# the tensors, in the tree, at the manifest.
@pytest.mark.parametrize("leave", range(0, 36864, 4096))
def test_a_full_disk_fails_the_save_keeps_the_others_and_training_goes_on(
    small_disk: Path, caplog: pytest.LogCaptureFixture, leave: int
) -> None:
    whole = build()
    losses = whole.train(6)
    run, root = build(), small_disk / "saves"
    with checkpoints(root, run) as saves:
        got = run.train(2)
        assert saves.save(at(2), "epoch", commit_s=60)
        kept = {p: p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "LOCK"}
        other = fill(small_disk, leave)
        free = shutil.disk_usage(small_disk).free
        got += run.train(2)
        assert not saves.save(at(4), "epoch", commit_s=60)
        assert "step 4 was not saved" in caplog.text
        assert "No space left on device" in caplog.text
        assert "the newest checkpoint is ckpt-000001-step-00000002" in caplog.text
        # The partial folder is gone, its space given back, and all else as it was.
        assert not list(root.glob(".*"))
        assert shutil.disk_usage(small_disk).free == free
        assert {p: p.read_bytes() for p in kept} == kept
        assert other.exists()
        other.unlink()
        got += run.train(2)
        assert saves.save(at(6), "epoch", commit_s=60)
    assert got == losses
    assert [r.step for r in reading.records(root)] == [6, 2]
    again = build()
    with checkpoints(root, again) as saves:
        saves.restore(saves.find())  # type: ignore[arg-type]
    assert again.bits() == whole.bits()
