"""For `speculators/train/graceful_shutdown.py`."""

import signal
from contextlib import contextmanager


def state(self):
    self._original_sighup: Any = None
    self._deferring = False
    self._pending: str | None = None
    # The signal that interrupted training, or None.
    self.signum: int | None = None


def install_hang_up(self):
    self._original_sighup = signal.getsignal(signal.SIGHUP)
    if self._original_sighup is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, self._handler)


def restore_hang_up(self):
    sighup = self._original_sighup
    if sighup is not signal.SIG_IGN:
        signal.signal(
            signal.SIGHUP, sighup if sighup is not None else signal.SIG_DFL
        )


def later(self, signum, sig_name):
    self.signum = signum
    if self._deferring:
        self._pending = sig_name
        return


def where_it_is(self):
    logger.info(
        f"Interrupt checkpoint saved in '{self.checkpointer.path}'; "
        "the log line above names its folder"
    )


@contextmanager
def deferred(self):
    """A signal in this block interrupts training at its end."""
    self._deferring = True
    try:
        yield
    finally:
        self._deferring = False
    if self._pending is not None:
        raise TrainingInterruptedError(self._pending)


@contextmanager
def deferred_interrupts(owner):
    """Keep an interrupt of *owner*'s decorated method out of this block."""
    handler = getattr(owner, "shutdown_handler", None)
    if handler is None:
        yield
        return
    with handler.deferred():
        yield
