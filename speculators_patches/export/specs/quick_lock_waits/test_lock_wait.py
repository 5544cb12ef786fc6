"""A file is read soon after its lock is let go, and a lock that stays is a time-out."""

import fcntl
import os
import time

import pytest
import torch
from safetensors.torch import save_file

from hs_connectors import transfer


def read(folder, written_after):
    """What is slept for a file whose lock goes after that much sleep, and the file."""
    path = folder / "sample.safetensors"
    save_file({"hidden_states": torch.ones(3)}, path)
    held = [os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR)]
    fcntl.flock(held[0], fcntl.LOCK_EX)
    slept = [0.0]

    def sleep(seconds):
        slept.append(seconds)
        if held and sum(slept) >= written_after:
            os.close(held.pop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep)
        patch.setattr(time, "monotonic", lambda: sum(slept))
        found = transfer._load_hs_file(path)
    return sum(slept), found


def test_a_file_is_read_soon_after_it_is_written(tmp_path):
    slept, found = read(tmp_path, written_after=0.02)

    assert slept < 0.05
    assert torch.equal(found["hidden_states"], torch.ones(3))
    assert not list(tmp_path.glob("*.lock"))


def test_a_lock_that_stays_is_a_timeout(tmp_path):
    with pytest.raises(TimeoutError, match="Timed out waiting for lock"):
        read(tmp_path, written_after=100)
