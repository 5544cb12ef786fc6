"""A disk that is full under a run's log, for real: a tmpfs of a few pages."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.compat import matrix
from tests.faults.long_run import Training, prepare, stop, wait_for

PROGRAM = """
import sys, time
from pathlib import Path
from tqdm import tqdm
folder = Path(sys.argv[1])
print("begun", flush=True)
while not (folder / "ballast").exists():
    time.sleep(0.01)
for step in tqdm(range(3000), mininterval=0):  # more than the whole disk
    print("step", step, "-" * 40)
print("a", "b" * 9000, file=sys.stderr)
(folder / "ballast").unlink()
print("there is room again", flush=True)
print("and on stderr", file=sys.stderr)
"""
# What `python -m speculators_patches run` does once the patches are in force.
LAUNCHED = """
import sys
from speculators_patches.launcher import Program, run
run(Program(script=sys.argv[1], args=tuple(sys.argv[2:])))
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Takes the room that is left."""
    with (folder / "taken").open("ab", buffering=0) as out:
        try:
            while True:
                out.write(b"\0" * 256)
        except OSError:
            (folder / "taken").rename(folder / "ballast")


@pytest.mark.parametrize("python", [[], ["-u"]])
@pytest.mark.parametrize("patched", [False, True])
def test_a_program_outlives_it(
    tmp_path: Path, small_disk: Path, patched: bool, python: list[str]
) -> None:
    script, log = tmp_path / "program.py", small_disk / "log"
    script.write_text(PROGRAM)
    how = ["-c", LAUNCHED] if patched else []
    with log.open("ab") as out:
        program = subprocess.Popen(
            [sys.executable, *python, *how, str(script), str(small_disk)],
            stdout=out, stderr=out, cwd=matrix.ROOT,
        )  # fmt: skip
        until = time.monotonic() + 60
        while b"begun" not in log.read_bytes():
            assert time.monotonic() < until
            time.sleep(0.02)
        fill(small_disk)
        code = program.wait(60)
    if not patched:
        assert code != 0
        return
    said = log.read_text(errors="replace")  # a character may be cut where room ended
    assert code == 0, said
    assert "bytes of output are lost, as the disk was full" in said
    assert "there is room again" in said
    assert said.endswith("and on stderr\n")


@pytest.mark.nightly
@pytest.mark.skipif(torch.accelerator.is_available(), reason="bitwise comparison on the CPU")
def test_training_goes_on_and_is_the_same(tmp_path: Path, small_disk: Path) -> None:
    work = prepare(tmp_path)
    flags = ("--epochs", "1", "--num-workers", "0", "--checkpoint-every-minutes", "0",
             "--checkpoint-every-steps", "5")  # fmt: skip
    alone = Training(work, tmp_path / "alone", *flags)
    assert alone.finish() == 0
    run = Training(work, tmp_path / "run", *flags)
    run.log = small_disk / "log"
    process = run.start(SLOW_S="0.2")
    try:
        wait_for(lambda: run.trained() >= 4, process)
        fill(small_disk)
        wait_for(lambda: run.trained() >= 14, process)
        (small_disk / "ballast").unlink()
        assert process.wait(120) == 0
    finally:
        stop(process)
    assert run.steps() == alone.steps()
    assert run.state() == alone.state()
