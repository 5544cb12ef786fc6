"""Patches are in force in every process of a run: real workers, ranks and subprocesses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat.running import PATCHED, last_json, python

MODULE = "tests.compat.probes.spread"
SCRIPT = Path(__file__).parent / "probes" / "spread.py"
ONLY = ("--only", "empty_sample_dtype")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

pytestmark = pytest.mark.matrix


@pytest.fixture(autouse=True)
def _upstream(laid_out: Callable[[str], Path]) -> None:
    laid_out("0.5.0")


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_dataloader_workers_of_a_module(method: str) -> None:
    found = last_json(python("0.5.0", *PATCHED, *ONLY, "--module", MODULE, "--", "workers", method))
    assert found == dict.fromkeys(("main", "worker 0", "worker 1"), "torch.bfloat16")


def test_spawned_dataloader_workers_of_a_script_in_another_folder(tmp_path: Path) -> None:
    found = last_json(
        python("0.5.0", *PATCHED, *ONLY, SCRIPT, "--", "workers", "spawn", cwd=tmp_path)
    )
    assert found == dict.fromkeys(("main", "worker 0", "worker 1"), "torch.bfloat16")


def test_subprocesses_and_theirs() -> None:
    found = last_json(python("0.5.0", *PATCHED, *ONLY, SCRIPT, "children"))
    assert found == dict.fromkeys(("main", "-m", "script from -c"), "torch.bfloat16")


def test_unpatched_processes_show_the_defect() -> None:
    found = last_json(python("0.5.0", SCRIPT, "workers", "spawn"))
    assert found == dict.fromkeys(("main", "worker 0", "worker 1"), "torch.float32")


RANKS = [f"rank {r} {who}" for r in (0, 1) for who in ("main", "worker 0", "worker 1")]


def test_two_gloo_ranks_that_torchrun_starts_through_run() -> None:
    done = python(
        "0.5.0", *TORCHRUN, "-m", "speculators_patches", "run", *ONLY,
        "--module", MODULE, "--", "ranks",
    )  # fmt: skip
    assert last_json(done) == dict.fromkeys(RANKS, "torch.bfloat16")


@pytest.mark.nightly
def test_two_gloo_ranks_of_a_torchrun_that_itself_runs_patched() -> None:
    done = python("0.5.0", *PATCHED, *ONLY, "--module", *TORCHRUN[1:2], "--", *TORCHRUN[2:],
                  SCRIPT, "ranks")  # fmt: skip
    assert last_json(done) == dict.fromkeys(RANKS, "torch.bfloat16")


def test_a_worker_that_cannot_apply_the_patch_fails_aloud(tmp_path: Path) -> None:
    """A child in which the patch does not fit must not run unpatched."""
    program = tmp_path / "program.py"
    program.write_text(
        "import subprocess, sys\n"
        "from speculators_patches import workers\n"
        "workers.spread(workers.Selection(('no_such_patch',)))\n"
        "sys.exit(subprocess.run([sys.executable, '-c', 'print(1)']).returncode)\n"
    )
    done = python("0.5.0", program)
    assert done.returncode == 2
    assert "subprocess of a patched run: no patch named no_such_patch" in done.stderr
    assert "1\n" not in done.stdout
