"""Runs a probe once per upstream version and hands its answer to every test that asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compat import running

_answers: dict[tuple[str, str], Any] = {}


@pytest.fixture
def probe(
    laid_out: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Any]:
    """(name in tests/faults/probes, upstream version) -> the JSON it printed."""

    def get(name: str, version: str) -> Any:
        laid_out(version)
        if (name, version) not in _answers:
            folder = tmp_path_factory.mktemp(name)
            done = running.python(version, "-m", f"tests.faults.probes.{name}", folder, timeout=900)
            _answers[name, version] = running.last_json(done)
        return _answers[name, version]

    return get
