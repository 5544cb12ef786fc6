"""quick_lock_waits: what vLLM is still writing is read soon after it is written.

Sleeping is counted instead of done, and the lock let go once enough of it has been asked for: no
clock decides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running

PROGRAM = """
import fcntl, json, os, sys, tempfile, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from speculators_patches import apply
from hs_connectors import transfer

path = Path(tempfile.mkdtemp()) / "sample.safetensors"
save_file({"hidden_states": torch.ones(3)}, path)
slept, held, written_after = [], [], 0.0

def sleep(seconds):
    slept.append(seconds)
    if held and sum(slept) >= written_after:
        os.close(held.pop())

def read(after):
    global written_after
    written_after = after
    slept.clear()
    held.append(os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR))
    fcntl.flock(held[0], fcntl.LOCK_EX)
    said = {}
    try:
        said["read"] = transfer._load_hs_file(path)["hidden_states"].tolist()
    except TimeoutError as error:
        said["error"] = str(error).replace(str(path.parent), "")
        os.close(held.pop())
    return said | {"slept": sum(slept), "lock_left": Path(f"{path}.lock").exists()}

time.sleep, time.monotonic = sleep, lambda: sum(slept)
found = [read(0.02), read(100)]
apply(only=["quick_lock_waits"])
found += [read(0.02), read(100)]
print(json.dumps(found))
"""


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_a_file_is_read_soon_after_it_is_written(
    version: str, laid_out: Callable[[str], Path]
) -> None:
    laid_out(version)
    found = running.last_json(running.python(version, "-c", PROGRAM))
    upstream, upstream_late, ours, ours_late = found
    assert upstream.pop("slept") == pytest.approx(0.1)
    assert ours.pop("slept") == pytest.approx(0.02)
    assert ours == upstream == {"read": [1.0] * 3, "lock_left": False}
    assert upstream_late.pop("slept") == pytest.approx(10, abs=0.11)
    assert ours_late.pop("slept") == pytest.approx(10, abs=0.006)
    said = "Timed out waiting for lock: /sample.safetensors.lock"
    assert ours_late == upstream_late == {"error": said, "lock_left": True}
