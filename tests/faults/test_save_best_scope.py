"""save_best_scope: upstream's real trainer with --save-best in a folder that holds other things."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_only_the_run_s_own_checkpoints_go(version: str, probe: Callable[[str, str], Any]) -> None:
    """Found there: another run's epoch 7, notes, run.yaml and a folder named checkpoint_best.

    Then a run improves at epochs 0 and 1, is resumed, and improves at 2; then another run starts
    from scratch in the same folder and improves at 0 and 1.
    """
    seen = probe("save_best", version)
    assert seen["unpatched"]["first"] == ["1", "checkpoint_best"]
    assert seen["unpatched"]["another_run"] == ["1", "checkpoint_best"]

    patched = seen["patched"]
    kept = ["checkpoint_best", "checkpoint_best.kept1", "notes", "run.yaml"]
    assert patched["first"] == ["1", "7", *kept]
    assert patched["resumes"] == 2
    assert patched["resumed"] == ["2", *kept[:3], "old", kept[3]]
    assert patched["another_run"] == ["1", "2", *kept[:3], "old", kept[3]]
    assert patched["best"] == "1"
