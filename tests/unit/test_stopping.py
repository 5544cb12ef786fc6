"""Signals while training: noted once, whatever has become of the terminal."""

from __future__ import annotations

import os
import signal

from speculators_patches.step_checkpoints.stopping import Signals


def test_a_terminal_that_hung_up_costs_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # what is written to it now fails, as on a terminal that is gone
    kept = os.dup(2)
    os.dup2(writer, 2)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == signal.SIGHUP
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)
