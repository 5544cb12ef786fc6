"""A sample that vLLM is still writing is looked for every 5 ms instead of every 100.

vLLM answers when a row is computed; its connector writes the hidden states with the next step, in a
thread, under a lock of the file. Whoever finds the file locked sleeps for a tenth of a second, and
looks again, however soon the file was there. On an H200 with Gemma 4 26B-A4B's shape (a row of 934
tokens is a file of 21 MB) a row took one worker some .2 s in all, and training waited half of its
time for twelve of them (benchmarks/results/online_pipeline_h200.json). How much of that is this
sleep was not measured: in small on a CPU no file was found locked, and nothing changed.

Time-outs and errors stay upstream's. Extraction beforehand has a wait of its own, many at once in
one process, which is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_WAIT = "hs_connectors.transfer:wait_for_lock"
LOOK_EVERY_S = 0.005

PATCH = Patch(
    name="quick_lock_waits",
    defect="A sample that vLLM is still writing costs its worker a sleep of 0.1 s, however soon it "
    "is written.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "hs_connectors.transfer",
            "wait_for_lock",
            fingerprints={">=0.8.1,<0.9.1": "5753e049c78b84ac"},
        ),
        # The one place that waits.
        Target(
            "hs_connectors.transfer",
            "_load_hs_file",
            fingerprints={">=0.8.1,<0.9.1": "604755e3e60e692c"},
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream looks for the lock more often, or waits for it in the kernel",
    proof="tests/faults/test_quick_lock_waits.py::test_a_file_is_read_soon_after_it_is_written",
    tested=("0.8.1", "0.9.0"),
)

_wait: Any = None


def wait_for_lock(lock_path: str, timeout: float = 10.0, poll_interval: float = 0.1) -> None:
    """Upstream's, with a look every 5 ms at the latest.

    Raises:
        TimeoutError: the lock is still held after `timeout` seconds.
    """
    _wait(lock_path, timeout, min(poll_interval, LOOK_EVERY_S))


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _wait
    _wait = originals[_WAIT]
    return {_WAIT: wait_for_lock}
