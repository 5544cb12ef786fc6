"""several_producers: upstream's real data set and two producers, of which one fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_work_goes_to_who_is_free_and_a_dead_one_costs_nothing(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out(version)
    unpatched, found = running.last_json(
        running.python(
            version, "-m", "tests.faults.probes.several_producers", tmp_path,
            "several_producers", "wait_for_producer",
            env={"TMPDIR": str(tmp_path)},
        )
    )  # fmt: skip
    # It takes the list for one address: all after its first comma is a path of the first server.
    assert unpatched["found"].startswith("unavailable True"), unpatched
    asked = unpatched["urls"].partition("/v1")[2]
    assert unpatched["paths"] == [[f"/v1{asked}/models"], []], unpatched
    eight = found.pop("eight")
    assert eight["three die"] == {"found": "sample", "asked": 4, "died": 3}
    assert eight["it kills"]["found"].startswith("unavailable True False ")
    assert eight["it kills"]["died"] == 6  # two are left to all others
    assert eight["it fails"]["found"].startswith("unavailable True False ")
    assert (eight["it fails"]["asked"], eight["it fails"]["died"]) == (3, 0)
    bad = found["a bad sample"]["samples"].pop(0)
    assert bad.startswith("unavailable True False ")
    assert "refused" not in bad
    assert "row 20 of the data" in bad
    for name, scenario in found.items():
        if name not in ("left", "gone"):
            assert set(scenario["samples"]) == {"sample"}, name
    asked = {name: found[name]["asked"] for name in found if name not in ("left", "gone")}
    assert asked["shared"] == [2, 2]
    assert asked["one is dead"] == [0, 4]
    assert min(asked["it is back"]) >= 1
    assert sum(asked["one breaks off"]) == 6  # both broke it off once
    assert asked["another program has its port"] == [4, 0]
    assert asked["all are down"] == [0, 4]
    assert found["left"] == []
    assert found["gone"]["kind"] == "ProducerGone"
    text = found["gone"]["text"]
    assert text.count("nothing accepts connections there") == 2
    assert text.count("http://127.0.0.1:") >= 2
    assert "run the same command again" in text
