"""skip_empty_steps: upstream's real trainer, 0.8.1 and 0.9.0, with batches that hold no data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches import stops
from speculators_patches.patches import skip_empty_steps
from tests.compat import running

VERSIONS = ["0.8.1", "0.9.0"]
KINDS = ["muon_E", "muon_M", "adamw_E", "adamw_M"]


Probe = Callable[[str, str], Any]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches_do_not_move_weights(version: str, kind: str, probe: Probe) -> None:
    seen = probe("skip_empty", version)
    before, after = seen["unpatched"][kind], seen["patched"][kind]
    assert before["by_empty_steps"] > 0.1 * before["by_real_steps"]
    assert before["schedule_moved"]
    assert after["by_real_steps"] == before["by_real_steps"]
    assert after["by_empty_steps"] == 0.0
    assert not after["schedule_moved"]
    assert after["global_step"] == before["global_step"] == 42


@pytest.mark.parametrize("version", VERSIONS)
def test_empty_batches_have_no_share_in_validation(version: str, probe: Probe) -> None:
    seen = probe("skip_empty", version)
    full = seen["unpatched"]["validation"]
    assert seen["unpatched"]["validation_with_empty"]["loss_epoch"] < 0.6 * full["loss_epoch"]
    assert seen["patched"]["validation"] == full
    assert seen["patched"]["validation_with_empty"] == pytest.approx(full, rel=1e-6)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("empty_validation", "the validation of epoch 0 had no trainable token"),
        ("empty_epoch", "none of the 3 steps of epoch 0"),
        ("many_lost", "11 of 16 samples of the last 16 steps"),
    ],
)
def test_a_run_without_data_stops(version: str, case: str, says: str, probe: Probe) -> None:
    seen = probe("skip_empty", version)
    assert seen["unpatched"][case] == "no error"
    assert seen["patched"][case].startswith("DataLost: ")
    assert says in seen["patched"][case]
    assert "\n" not in seen["patched"][case]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_run_that_loses_nothing_is_untouched(version: str, probe: Probe) -> None:
    seen = probe("skip_empty", version)
    assert seen["patched"]["undisturbed"] == seen["unpatched"]["undisturbed"]


@pytest.mark.parametrize("version", VERSIONS)
def test_two_ranks_agree(version: str, laid_out: Callable[[str], Path], tmp_path: Path) -> None:
    laid_out(version)
    unpatched = _two_ranks(version, tmp_path / "unpatched")
    patched = _two_ranks(version, tmp_path / "patched", "skip_empty_steps")

    # Steps: data on rank 0 alone; data on both; on rank 0 alone; on none.
    assert [rank["steps"] for rank in unpatched] == [[True] * 4] * 2
    assert [rank["steps"] for rank in patched] == [[True, True, True, False]] * 2
    assert patched[0]["weights"] == patched[1]["weights"]
    # The rank without data halved the other's gradient.
    for name, gradient in patched[0]["gradient"].items():
        assert gradient == 2 * unpatched[0]["gradient"][name]
    # Validation: 1 batch of 4 holds data.
    loss = patched[0]["validation"]["loss_epoch"]
    assert loss == patched[1]["validation"]["loss_epoch"] > 0
    assert unpatched[0]["validation"]["loss_epoch"] < 0.5 * loss


def _two_ranks(version: str, folder: Path, *patches: str) -> list[dict[str, Any]]:
    from tests.faults import tiny

    folder.mkdir()
    tiny.verifier(folder)
    done = running.python(
        version,
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "tests.faults.probes.ranks", str(folder), *patches),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / str(rank)).read_text()) for rank in (0, 1)]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=60),
    st.integers(1, 20),
    st.floats(0.0, 1.0),
)
def test_the_limit_is_on_what_a_window_loses(
    batches: list[tuple[int, int]], window: int, share: float
) -> None:
    """It never stops at or below the share, and always above it once a window is full."""
    run = skip_empty_steps.Run(None, False, False)
    run.share, run.window = share, window
    run._recent = run._recent.__class__(maxlen=window)
    for step, (kept, lost) in enumerate(batches, 1):
        recent = batches[max(0, step - window) : step]
        all_lost = sum(item[1] for item in recent)
        total = sum(map(sum, recent))
        full = step >= window
        try:
            run.train(skip_empty_steps.Seen(min(kept, 1), kept, lost))
        except skip_empty_steps.DataLost:
            assert all_lost > share * total
            return
        assert not (full and all_lost > share * total)
        assert run.step_is_empty == (kept == 0)


def test_a_senseless_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECULATORS_PATCHES_MAX_LOST_SHARE", "2 percent")
    with pytest.raises(stops.RunStopped, match=r"MAX_LOST_SHARE='2 percent' is not a number"):
        skip_empty_steps.Run(None, False, False)


def test_a_stop_is_one_line_and_not_a_traceback() -> None:
    def main() -> None:
        raise skip_empty_steps.DataLost("nothing came")

    with pytest.raises(SystemExit) as end:
        stops.say_and_exit(main)
    assert end.value.code == "speculators_patches: training stopped: nothing came"
