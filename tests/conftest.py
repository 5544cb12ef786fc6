"""Fixtures for tests that need one of the upstream versions of the matrix."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.compat import matrix

# How long a busy machine takes for an example decides no test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell starts what it runs with & deaf to Ctrl+C, and so would be all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Likewise nohup: a hang-up, which a training under it rightly ignores.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def laid_out() -> Callable[[str], Path]:
    """Gives the folder of an upstream version; skips (fails under MATRIX_REQUIRED=1) without it."""

    def folder(version: str) -> Path:
        if not matrix.is_laid_out(version):
            reason = f"speculators {version} is not laid out; run python -m tests.compat.matrix"
            if os.environ.get("MATRIX_REQUIRED") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        return matrix.layout(version)

    return folder


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    """Patches that a test leaves in force would be so in all processes that later tests start."""
    yield
    overlay = sys.modules.get("speculators_patches.overlay")
    if overlay is not None and (names := overlay.in_force()):
        overlay.revert()
        pytest.fail(f"this test left patches in force in its own process: {', '.join(names)}")


# Minutes each, and what they show is shown once more by a quicker neighbour (another upstream
# version, or the engine below the patch). `make nightly` runs them all.
_NIGHTLY_FILES = {"test_step_checkpoints_ranks.py"}
# Of these files all is nightly but what is named here.
_NIGHTLY_BUT = {
    "test_step_checkpoints.py": {
        "test_resumed_anywhere_it_is_the_same_run[1]",
        "test_resumed_anywhere_it_is_the_same_run[18]",
        "test_a_signal_saves_the_step_and_tells_by_its_exit_code[2-3]",
        "test_a_signal_saves_the_step_and_tells_by_its_exit_code[15-18]",
        "test_killed_at_random",
        "test_signalled_at_random[0-4-1]",
    }
}
_NIGHTLY_VERSIONS = {
    "faults": ("0.8.1",),
    "compat/test_apply_revert.py": ("0.5.0", "0.6.0.2", "0.7.0.2", "0.8.1"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow half of the matrix as nightly."""
    for item in items:
        path = item.path.as_posix()
        versions = [v for part, found in _NIGHTLY_VERSIONS.items() if part in path for v in found]
        kept = _NIGHTLY_BUT.get(item.path.name)
        if kept is not None and item.name not in kept:
            item.add_marker(pytest.mark.nightly)
        if item.path.name in _NIGHTLY_FILES or any(version in item.name for version in versions):
            item.add_marker(pytest.mark.nightly)
