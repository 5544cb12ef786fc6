"""Ctrl+C arrives while a request for hidden states is under way."""

import os
import signal
import sys

from speculators.train.graceful_shutdown import (
    GracefulShutdownHandler,
    TrainingInterruptedError,
)
from speculators.train.recovery import GenerationRecoveryGuard


def request():
    os.kill(os.getpid(), signal.SIGINT)
    raise ConnectionError("no answer")


handler = GracefulShutdownHandler()
handler.install()
guard = GenerationRecoveryGuard(retries=2, max_consecutive_failures=20)
try:
    result = guard.run(request, description="hidden states of sample 0")
except TrainingInterruptedError:
    print("OK: the run is interrupted")
    sys.exit(0)
print(f"DEFECT: the signal became a lost sample: {result.reason}")
sys.exit(1)
