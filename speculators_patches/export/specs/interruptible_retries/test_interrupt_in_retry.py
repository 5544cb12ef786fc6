"""An interrupt ends a run that is waiting for hidden states."""

import os
import signal

import pytest

from speculators.data_generation.vllm_client import with_retries
from speculators.train import graceful_shutdown
from speculators.train.graceful_shutdown import (
    GracefulShutdownHandler,
    with_graceful_shutdown,
)
from speculators.train.recovery import GenerationRecoveryGuard


@pytest.fixture
def handler():
    handler = GracefulShutdownHandler()
    handler.install()
    yield handler
    handler.restore()


def interrupt(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_passes_the_recovery_guard(handler, signum):
    guard = GenerationRecoveryGuard(retries=2, max_consecutive_failures=20)

    with pytest.raises(graceful_shutdown.TrainingInterruptedError):
        guard.run(lambda: interrupt(signum), description="sample 0")

    assert guard.consecutive_failures == 0


def test_interrupt_passes_the_request_retries(handler):
    calls = []

    @with_retries
    def request():
        calls.append(1)
        interrupt(signal.SIGINT)

    with pytest.raises(graceful_shutdown.TrainingInterruptedError):
        request(max_retries=3)

    assert len(calls) == 1


def test_interrupt_inside_a_guard_saves_a_checkpoint(tmp_path):
    class FakeTrainer:
        saved: list[str] = []

        class checkpointer:  # noqa: N801
            path = tmp_path

        def maybe_save_checkpoint(self, label):
            self.saved.append(label)

        @with_graceful_shutdown()
        def run_training(self):
            guard = GenerationRecoveryGuard(retries=2, max_consecutive_failures=20)
            guard.run(lambda: interrupt(signal.SIGTERM), description="sample 0")

    FakeTrainer().run_training()

    assert FakeTrainer.saved == ["interrupted"]
