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
apply(only=sys.argv[2:])
from hs_connectors import transfer

written_after = float(sys.argv[1])
folder = Path(tempfile.mkdtemp())
slept, now = [], [0.0]
path = folder / "sample.safetensors"
save_file({"hidden_states": torch.ones(3)}, path)
held = [os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR)]
fcntl.flock(held[0], fcntl.LOCK_EX)

def sleep(seconds):
    slept.append(seconds)
    now[0] += seconds
    if held and sum(slept) >= written_after:
        os.close(held.pop())

time.sleep, time.monotonic = sleep, lambda: now[0]
said = {}
try:
    said["read"] = transfer._load_hs_file(path)["hidden_states"].tolist()
except TimeoutError as error:
    said["error"] = str(error).replace(str(folder), "")
said["slept"] = sum(slept)
said["lock_left"] = Path(f"{path}.lock").exists()
print(json.dumps(said))
"""


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_a_file_is_read_soon_after_it_is_written(
    version: str, laid_out: Callable[[str], Path]
) -> None:
    laid_out(version)
    upstream = running.last_json(running.python(version, "-c", PROGRAM, "0.02"))
    ours = running.last_json(running.python(version, "-c", PROGRAM, "0.02", "quick_lock_waits"))
    assert upstream.pop("slept") == pytest.approx(0.1)
    assert ours.pop("slept") == pytest.approx(0.02)
    assert ours == upstream == {"read": [1.0] * 3, "lock_left": False}


@pytest.mark.parametrize("patch", [(), ("quick_lock_waits",)])
def test_the_time_out_is_upstream_s(
    patch: tuple[str, ...], laid_out: Callable[[str], Path]
) -> None:
    laid_out("0.9.0")
    said = running.last_json(running.python("0.9.0", "-c", PROGRAM, "100", *patch))
    assert said["error"] == "Timed out waiting for lock: /sample.safetensors.lock"
    assert said["slept"] == pytest.approx(10, abs=0.11)
    assert said["lock_left"]
