"""cached_sample_errors (and finite_guard's check of the cache): upstream's real data set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.compat import running
from tests.faults.probes import cache

BOTH = ("cached_sample_errors", "finite_guard")
ENDS_THE_RUN = ("truncated", "garbage", "empty", "locked", "no_states", "directory")
SPOILS_THE_BATCH = ("short", "layers", "nan")


def read(version: str, folder: Path, *patches: str, workers: int = 0) -> Any:
    if not (folder / "data").exists():
        cache.build(folder)
    env = {"SPECULATORS_PATCHES_LOCK_WAIT_S": "0.2", "PROBE_WORKERS": str(workers)}
    return running.last_json(
        running.python(
            version, "-W", "ignore", "-m", "tests.faults.probes.cache", folder, *patches, env=env
        )
    )


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_each_bad_file_costs_one_sample(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out(version)
    ask = partial(read, version, tmp_path)
    unpatched = dict(zip(cache.KINDS, ask(), strict=False))
    for kind in ENDS_THE_RUN:
        assert unpatched[kind].startswith("error "), kind
    for kind in SPOILS_THE_BATCH:
        assert unpatched[kind] == "bad sample"
    for number, (kind, found) in enumerate(zip(cache.KINDS, ask(*BOTH), strict=True)):
        if kind in ("good", "stale_lock"):
            assert found == "sample"
        else:
            # counted as a failure, not fatal, and named
            assert found.startswith("unavailable True False "), kind
            assert f"hs_{number}.safetensors" in found


def test_workers_do_the_same(laid_out: Callable[[str], Path], tmp_path: Path) -> None:
    """Spawned DataLoader workers read the cache; the patch goes with them."""
    laid_out("0.9.0")
    lost = len(cache.KINDS) - cache.KINDS.count("good") - 1  # a stale lock is none
    found = read("0.9.0", tmp_path, *BOTH, workers=1)
    assert found == {"batches": len(cache.KINDS), "lost": lost}


def test_as_many_in_a_row_as_failed_generations_end_the_run(
    laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out("0.9.0")
    code = """
import sys
from pathlib import Path
from speculators_patches import apply
apply(only=["cached_sample_errors"])
from speculators.train.data import ArrowDataset
from tests.faults.probes import cache
folder = Path(sys.argv[1])
cache.KINDS = ("garbage",) * 4
cache.build(folder)
dataset = ArrowDataset(24, folder / "data", max_consecutive_generation_failures=3)
print([dataset[index].fatal for index in range(4)])
"""
    done = running.python("0.9.0", "-c", code, tmp_path)
    assert done.stdout.splitlines()[-1] == "[False, False, True, True]", done.stderr[-2000:]
