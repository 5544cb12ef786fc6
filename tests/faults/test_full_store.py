"""A full store, real: upstream's samples are evicted unread; ours are kept, and puts wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.vllm import mooncake
from tests.compat import running

WHY_NOT = mooncake.missing()


@pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))
def test_nothing_is_evicted_and_a_put_waits_for_room(
    laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out("0.9.0")
    upstream, ours = running.last_json(
        running.python("0.9.0", "-m", "tests.faults.probes.full_store", tmp_path)
    )
    lost = set(upstream["stored"]) - set(upstream["kept"])
    assert len(lost) >= 1  # stored, said to be, and gone

    assert len(ours["full"]) in (15, 16)  # of 16 that fit; the sign of life takes a little
    assert ours["kept"] == ours["full"]
    assert ours["stored"] == list(range(20))
