"""apply() and revert() on real upstream objects, in a process per upstream version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import matrix
from tests.compat.running import python

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("version", matrix.VERSIONS)
def test_any_sequence_of_applies_is_undone_to_the_very_objects(
    laid_out: Callable[[str], Path], version: str
) -> None:
    laid_out(version)
    done = python(version, "-m", "tests.compat.probes.apply_revert")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("held")


@pytest.mark.parametrize("version", ["0.5.0", "0.9.0"])
def test_apply_changes_nothing_when_one_patch_is_refused(
    laid_out: Callable[[str], Path], version: str
) -> None:
    laid_out(version)
    done = python(version, "-m", "tests.compat.probes.all_or_nothing")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("held")
