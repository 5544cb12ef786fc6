"""conversation_split: upstream's own prepare-data and training split, with and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from speculators_patches.patches import conversation_split

VERSIONS = ["0.8.1", "0.9.0"]
Probe = Callable[[str, str], Any]


@pytest.mark.parametrize("version", VERSIONS)
def test_no_conversation_is_on_both_sides(version: str, probe: Probe) -> None:
    found = probe("conversation_split", version)
    assert len(found["unpatched"]) >= 3, "upstream no longer shares conversations"
    assert found["patched"] == []
    assert abs(found["share"] - 0.8) < 0.05
    assert found["by_id"] == [], "rows without primary_id go by their id"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_split_follows_the_seed_and_loses_nothing(version: str, probe: Probe) -> None:
    found = probe("conversation_split", version)
    assert found["same_rows"], "rows and token counts are those of an unpatched upstream"
    assert found["same_again"]
    assert found["other_seed"]
    assert found["two_workers"]


@pytest.mark.parametrize("version", VERSIONS)
def test_data_of_an_unpatched_upstream_is_still_read(version: str, probe: Probe) -> None:
    found = probe("conversation_split", version)
    assert found["unnamed_data"] == found["unpatched"]


@pytest.mark.parametrize("version", VERSIONS)
def test_any_data_set_is_cut_between_conversations_or_refused(version: str, probe: Probe) -> None:
    assert probe("conversation_split", version)["broken"] == []


@pytest.mark.parametrize("version", VERSIONS)
def test_rendered_conversations_have_a_name_each(version: str, probe: Probe) -> None:
    assert probe("conversation_split", version)["rendered"] == [3, 2]


def test_0_is_an_id_like_any_other() -> None:
    ids = [[1], [2], [3], [3], [4]]
    names = list(conversation_split._names({"id": [0, 0, None, "", 1], "input_ids": ids}))
    assert names[0] == names[1] == "0"
    assert names[2] == names[3] != names[0]
    assert names[4] == "1"
    both = {"primary_id": [0, None], "id": ["a", 0], "input_ids": ids[:2]}
    assert list(conversation_split._names(both)) == ["0", "0"]
