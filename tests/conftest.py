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
