"""Fixtures for tests that need one of the upstream versions of the matrix."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import matrix


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


# Minutes each, and what they show is shown once more by a quicker neighbour (another upstream
# version, or the engine below the patch). `make nightly` runs them all.
_NIGHTLY_FILES = {"test_step_checkpoints.py", "test_step_checkpoints_ranks.py"}
_NIGHTLY_VERSIONS = {
    "faults": ("0.8.1",),
    "compat/test_apply_revert.py": ("0.5.0", "0.6.0.2", "0.7.0.2", "0.8.1"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the slow half of the matrix as nightly."""
    for item in items:
        path = item.path.as_posix()
        versions = [v for part, found in _NIGHTLY_VERSIONS.items() if part in path for v in found]
        if item.path.name in _NIGHTLY_FILES or any(version in item.name for version in versions):
            item.add_marker(pytest.mark.nightly)
