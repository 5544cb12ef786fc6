"""A server's process group: stopped as a whole, so that no engine process stays behind.

Standard library only: `guard` runs without the environment's packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Linux: what a server leaves behind becomes a child of this process, which can wait for it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Group:
    """The process that leads a group (its pid is the group's id), and a way to end the group.

    Only the process that started `pid` may use it, as it alone can wait for it; it should have
    called `adopt_orphans` before.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self._leader_code: int | None = None
        self._deadline: float | None = None

    def poll(self) -> int | None:
        """The leader's exit code (negative: the signal), once its whole group is gone."""
        if self._leader_code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == self.pid:
                self._leader_code = os.waitstatus_to_exitcode(status)
                self._signal_group(signal.SIGKILL)
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self._deadline = None
                self._signal_group(signal.SIGKILL)
        if self._leader_code is not None and self.code is None and self._is_gone():
            self.code = self._leader_code
        return self.code

    def _is_gone(self) -> bool:
        """Waits for the members that were adopted; True when none is left."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG) != (0, 0):
                pass
            return False
        return True

    def ask_to_stop(self, grace: float) -> None:
        """SIGTERM to the leader; `poll` kills the group once `grace` seconds have passed."""
        if self.poll() is None and self._leader_code is None:
            if self._deadline is None:
                os.kill(self.pid, signal.SIGTERM)
            self._deadline = time.monotonic() + grace

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
