"""mooncake_waits: upstream's real data set and a real Mooncake store that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.vllm import mooncake
from tests.compat import running

WHY_NOT = mooncake.missing()


@pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))
def test_a_sample_is_waited_for_or_asked_again(
    laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out("0.9.0")
    unpatched, found = running.last_json(
        running.python(
            "0.9.0", "-m", "tests.faults.probes.mooncake_waits", tmp_path,
            "mooncake_waits", "wait_for_producer",
        )
    )  # fmt: skip
    assert unpatched["sound"][0] == "sample"
    assert unpatched["killed"][0].startswith("unavailable True")
    assert (unpatched["nameless"], found.pop("nameless")) == ("gaierror", "made")

    asked = {name: found[name][1] for name in found if name not in ("left", "restarts")}
    said = found.pop("said")
    assert said[0].startswith("unavailable True False ")
    assert "it is not finite" in said[0]
    for name in ("sound", "killed", "away", "late", "lost", "after"):
        assert found[name][0] == "sample", name
    assert asked == {
        "sound": 1, "killed": 2, "away": 1, "late": 1, "lost": 2, "said": 1, "after": 1,
    }  # fmt: skip
    assert found["restarts"] == 1
    assert found["left"] == []
