"""wait_for_producer: upstream's real data set and a producer that fails in chosen ways."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running
from tests.faults.test_interruptible_retries import wait_for, waiting_run

# hangs: one request, while the server answers the others; the client's time-out bounds it.
ENDURED = ("down", "dropped", "errors", "missing", "torn", "hangs", "slow", "imposter", "plain")
AT_FAULT = ("refused", "kills", "fails")


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_a_server_that_is_gone_costs_no_sample(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out(version)
    found, patched = running.last_json(
        running.python(version, "-m", "tests.faults.probes.producer", tmp_path, "wait_for_producer")
    )
    assert found["sound"][0] == "sample"
    for name in ENDURED:
        assert found[name][0].startswith("unavailable True"), name

    found = patched
    for name in ("sound", *ENDURED, "after"):
        assert found[name][0] == "sample", name
    for name in AT_FAULT:  # one unavailable sample, counted, not the end, and named
        text, times = found[name]
        assert text.startswith("unavailable True False "), name
        row = list(found).index(name)
        assert f"row {row} of the data" in text
        assert times == (1 if name == "refused" else 3), name
    # Those of canaries are gone; a torn one was removed by upstream.
    assert found["left"] == []
    # Not waited for: nothing would change.
    assert found["wrong_model"].startswith("unavailable True True producer gone: http://127.0.0.1:")
    assert "explicit model name was passed (another)" in found["wrong_model"]
    assert found["gone"]["kind"] == "ProducerGone"
    assert found["gone"]["text"].startswith("no hidden states from http://127.0.0.1:")
    assert "nothing accepts connections there" in found["gone"]["text"]
    assert "run the same command again" in found["gone"]["text"]


@pytest.mark.nightly
@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_a_signal_ends_the_wait_at_once(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out(version)
    patches = ("interruptible_retries", "wait_for_producer")
    with waiting_run(version, tmp_path, *patches, manner="drop") as (run, _, log):
        wait_for(lambda: "Training waits for it" in log.read_text(), run, log)
        run.send_signal(signal.SIGTERM)
        run.wait(60)
        assert "returned from run_training" in log.read_text()
