"""durable_responses: upstream's own regenerate-responses, killed, starved, resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compat import running

VERSIONS = ["0.8.1", "0.9.0"]
Probe = Callable[[str, str], Any]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_restart_loses_and_doubles_nothing(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)
    for name in ("torn_tail", "half_a_conversation", "again"):
        unpatched, patched = found["unpatched"][name], found["patched"][name]
        assert unpatched["code"] == 0
        assert not unpatched["whole"], f"upstream no longer has the defect: {name}"
        assert patched["code"] == 0
        assert patched["whole"], name
    # Half a line and the next row, glued together, can't even be read.
    assert found["unpatched"]["torn_tail"]["unreadable"]
    assert found["unpatched"]["half_a_conversation"]["rows"] == 8  # of 9
    assert found["unpatched"]["again"]["rows"] == 18
    # What is learnt from an undisturbed run is the same, to the token.
    assert found["unpatched"]["undisturbed"]
    assert found["patched"]["undisturbed"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_dead_server_is_no_success(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)
    for name, says in (("dead", "no server has answered"), ("errors", "6 of 6 conversations")):
        assert found["unpatched"][name]["code"] == 0
        assert found["unpatched"][name]["rows"] == 0
        assert found["patched"][name]["code"] == 1
        assert says in found["patched"][name]["said"]
        assert "Traceback" not in found["patched"][name]["said"]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_silent_server_is_not_waited_for(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)["patched"]["hang"]
    assert found["code"] == 0
    assert found["whole"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_living_endpoint_works(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)["patched"]["endpoints"]
    assert found["code"] == 0
    assert found["whole"]
    assert min(found["asked"]) > 0
    assert sum(found["asked"]) == 18, "each turn is asked once"
    assert found["named"], "each row names the server that answered it"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_full_disk_leaves_whole_conversations(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)["patched"]
    assert found["full_disk"]["code"] == 1
    assert "could not be written" in found["full_disk"]["said"]
    assert found["full_disk"]["partly"]
    assert 0 < found["full_disk"]["kept"] < 12
    assert found["full_disk_then"]["code"] == 0
    assert found["full_disk_then"]["whole"]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_asked_is_what_was_set(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)["patched"]
    assert found["doubled"] == {"c0": 1, "c1": 2}, "a prompt that is given twice is asked once"
    roles = sorted(len(roles) for roles, _, _ in found["sent"])
    assert roles == [2, 2, 4]
    for sent, prompt, template in found["sent"]:
        assert sent[0] == "system"
        assert prompt == "Be brief."
        assert template == {"enable_thinking": False}
    assert found["answer"].startswith("I say to 'question 0.0'")


@pytest.mark.parametrize("version", VERSIONS)
def test_any_accidents_and_restarts_end_with_every_row_once(version: str, probe: Probe) -> None:
    assert probe("durable_responses", version)["broken"] == []


# ---- the recipe's stages on top of it ----


@pytest.mark.parametrize("version", VERSIONS)
def test_stages_killed_anywhere_go_on_where_they_were(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)["stages"]
    assert found["undisturbed"] == [0, ""]
    assert found["operations"] > 20, "the places to kill at"
    assert found["late"] == [-9, False, 0, "", True]
    assert found["broken"] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_a_finished_stage_says_so_and_does_nothing(version: str, probe: Probe) -> None:
    again = probe("durable_responses", version)["stages"]["again"]
    assert again == {
        "code": 0,
        "operations": 0,
        "said": 2,
        "same_commands": True,
        "requests": 0,
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_too_many_dropped_answers_end_prepare(version: str, probe: Probe) -> None:
    found = probe("durable_responses", version)["stages"]
    code, said = found["dropped"]
    assert code == 1
    assert "3 of 9 answers were dropped, more than prepare_drop_share=0.02" in said
    assert found["restored"] == [0, "", 0], "the earlier data set is back, nothing was asked"


@pytest.mark.parametrize("version", VERSIONS)
def test_answers_that_somebody_changed_are_not_prepared(version: str, probe: Probe) -> None:
    code, said = probe("durable_responses", version)["stages"]["spoilt"]
    assert code == 1
    assert "is not the file that regenerate finished" in said


@pytest.mark.parametrize("version", VERSIONS)
def test_the_recorded_command_can_be_run_again(version: str, probe: Probe) -> None:
    first = probe("durable_responses", version)["stages"]["commands"][0]
    assert first[0] == "env"
    assert first[1].startswith("SPECULATORS_PATCHES_ERROR_SHARE=")


@pytest.mark.nightly
def test_many_accidents_and_restarts(laid_out: Callable[[str], Path], tmp_path: Path) -> None:
    laid_out("0.9.0")
    done = running.python(
        "0.9.0", "-m", "tests.faults.probes.durable_responses", tmp_path, env={"EXAMPLES": "60"},
        timeout=3600,
    )  # fmt: skip
    found = running.last_json(done)
    assert found["broken"] == []
    assert found["stages"]["broken"] == []
