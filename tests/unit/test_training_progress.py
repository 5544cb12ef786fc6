"""How far a training is, read from what upstream's own logger wrote into its log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from recipes.stages import _training_progress

# Upstream's trainer says each logged step so; a file is 80 columns wide to its handler.
LOGGING = """
import logging
from speculators.train.logger import setup_root_logger
setup_root_logger()
logger = logging.getLogger("speculators")
logger.info("Fast-skipping 3 batches via sampler slice. epoch=1, global_step=7.")
for step in (7, 8, 123):
    logger.info({
        "train": {"loss": 24.292, "full_acc_2": 0.0, "accept_0": 1e-7},
        "profile": {"fetch_ms": 45.6, "memory_mb": {"fwd": 1234.5}},
        "epoch": 1, "lr": 9.86e-05, "global_step": step,
    })
logger.info({"val": {"loss_epoch": 3.0}, "epoch": 2})
"""


def test_the_newest_epoch_and_step(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    assert _training_progress(log, 0) == (0, None)
    log.write_text("an earlier training: epoch=9, global_step=99\n")
    offset = log.stat().st_size
    assert _training_progress(log, offset) == (0, None)
    with log.open("a") as file:
        subprocess.run(
            [sys.executable, "-c", LOGGING], stdout=file, stderr=subprocess.STDOUT, check=True
        )
    assert "train/loss=24.292" in log.read_text()
    assert _training_progress(log, offset) == (2, 123)
