"""durable_extraction: upstream's generate-offline-data and a producer that fails in chosen ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running
from tests.faults.probes.durable_extraction import BAD, ROWS

ALL = list(range(ROWS))
REST = [row for row in ALL if row != BAD]
ENDURED = ("away", "late", "errors", "missing", "torn", "nan", "silent")
AT_FAULT = {"refused": 1, "kills": 3, "always_nan": 3}  # how often it is asked for


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_a_server_that_is_gone_costs_no_sample(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out(version)
    unpatched, patched, several = running.last_json(
        running.python(version, "-m", "tests.faults.probes.durable_extraction", tmp_path)
    )
    assert unpatched["sound"]["right"] == patched["sound"]["right"] == ALL
    for name in ENDURED:
        assert unpatched[name]["right"] != ALL, f"upstream no longer has the defect: {name}"
        found = patched[name]
        assert (found["code"], found["right"], found["wrong"]) == (0, ALL, []), name
        assert found["left"] == [], name
    for name in ("torn", "nan", "always_nan"):  # a success, and the next call takes it for done
        assert (unpatched[name]["code"], unpatched[name]["wrong"]) == (0, [BAD])

    for name, times in AT_FAULT.items():
        found = patched[name]
        assert (found["code"], found["right"], found["wrong"]) == (0, REST, []), name
        assert found["asked"] == times, name
    assert unpatched["too_many"]["code"] == 0
    assert patched["too_many"]["code"] == 1
    assert (
        f"1 of {ROWS} samples could not be had (rows {BAD}), more than 2.0%"
        in (patched["too_many"]["said"])
    )
    assert patched["torn_before"]["right"] == ALL

    assert patched["gone"]["code"] == 1
    assert "nothing accepts connections there" in patched["gone"]["said"]
    assert "run the same command again: it goes on with what is left" in patched["gone"]["said"]
    for name in ("refused_again", "gone_again"):
        assert (patched[name]["code"], patched[name]["right"]) == (0, ALL), name

    # ---- two servers ----
    for name in ("both_up", "one_away", "first_down", "one_gone"):
        found = several[name]
        assert (found["code"], found["right"], found["wrong"]) == (0, ALL, []), (name, found)
    assert min(several["both_up"]["asked"]) >= 3  # of ten rows
    assert several["first_down"]["asked"][0] == 0
    assert several["both_gone"]["code"] == 1
    assert "nothing accepts connections there" in several["both_gone"]["said"]
    assert "it goes on with what is left" in several["both_gone"]["said"]

    # ---- eight servers and one sample ----
    for name, right, asked, died in (
        ("three_die", ALL, 4, 3),
        ("it_kills", REST, 6, 6),
        ("it_fails", REST, 3, 0),
    ):
        found = several[name]
        assert (found["code"], found["right"], found["wrong"]) == (0, right, []), (name, found)
        assert (found["asked"], found["died"]) == (asked, died), name
