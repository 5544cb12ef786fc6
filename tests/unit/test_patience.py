"""Process groups outlast a rank's wait for the producer."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from speculators_patches import patience
from speculators_patches.stops import RunStopped


def timeout_of(group: Any) -> timedelta:
    found: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return found


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Arguments of a world of one rank, which is ended afterwards."""
    yield {"init_method": f"file://{tmp_path}/rendezvous", "rank": 0, "world_size": 1}
    dist.destroy_process_group()


def test_groups_wait_for_a_producer_twice_and_for_work(
    alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(patience.MINUTES, "45")
    expected = timedelta(minutes=100)
    assert patience.group_timeout() == expected
    makers = dist.init_process_group, dist.new_group
    with patience.groups():
        dist.init_process_group("gloo", **alone)
        assert timeout_of(dist.group.WORLD) == expected
        assert timeout_of(dist.new_group([0])) == expected
        told = timedelta(seconds=20)
        assert timeout_of(dist.new_group([0], timeout=told)) == told
    assert (dist.init_process_group, dist.new_group) == makers
    assert timeout_of(dist.new_group([0])) < expected


def test_a_wait_that_is_no_number_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.MINUTES, "a while")
    with pytest.raises(RunStopped, match="'a while' is not a number"):
        patience.group_timeout()
