"""A share of a core for each of several programs: machines of their own, on one machine (Linux).

    with Quotas(0.4) as quotas:
        quotas.give("producer 1", server.pids())   # all threads of these processes, together

A program that waits leaves its share unused and cannot take another one's, so what is measured is
not how the programs push each other off the cores; and it goes before all that has no share, so
that little else on the machine takes from it. Control groups do it (version 1 or 2), for which one
must be root. That a share holds is measured before it is relied upon.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 10_000  # short beside a request, so that nothing waits long for its next share
_SPIN = (
    "import time; t, c = time.time(), time.process_time()\n"
    "while time.time() - t < 1: pass\n"
    "print(time.process_time() - c)"
)


class NoQuotas(RuntimeError):
    """Shares cannot be given here; one sentence."""


class Quotas:
    """Shares of one size.

    Args:
        cores: of each program; 0.4 is 40 % of one core.

    Raises:
        NoQuotas: on entering, this machine cannot do it or does not keep to it.
    """

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self._tag = f"speculators-patches-{os.getpid()}"
        self._made: dict[str, Path] = {}
        self._second = (_ROOT / "cgroup.controllers").is_file()
        self._home = _ROOT if self._second else _ROOT / "cpu"

    def __enter__(self) -> Quotas:
        try:
            got = self._measured()
            if abs(got / self.cores - 1) > 0.2:
                raise NoQuotas(f"a program that was given {self.cores} of a core got {got:.2f}")
        except OSError as error:
            raise NoQuotas(f"control groups cannot be used here ({error})") from None
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        value: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        for folder in self._made.values():
            # A group goes when it is empty: what is left in it moves to the top.
            with contextlib.suppress(OSError):
                for pid in (folder / "cgroup.procs").read_text().split():
                    with contextlib.suppress(OSError):
                        (self._home / "cgroup.procs").write_text(pid)
                folder.rmdir()
        self._made = {}

    def give(self, name: str, pids: Sequence[int], *, unlimited: bool = False) -> None:
        """Moves these processes under the share called `name`, which is made if it is new.

        Args:
            unlimited: they go before what has no share, and may take as much as there is.

        Raises:
            OSError: the kernel does not let us.
        """
        folder = self._made.get(name)
        if folder is None:
            folder = self._made[name] = self._home / f"{self._tag}-{len(self._made)}"
            folder.mkdir()
            quota = round(self.cores * _PERIOD_US)
            if self._second:
                (folder / "cpu.weight").write_text("10000")  # the largest
                if not unlimited:
                    (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
            else:
                (folder / "cpu.shares").write_text(str(2**18))  # the largest
                if not unlimited:
                    (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
                    (folder / "cpu.cfs_quota_us").write_text(str(quota))
        for pid in pids:
            (folder / "cgroup.procs").write_text(str(pid))

    def _measured(self) -> float:
        """Cores that a busy loop gets."""
        if self._second and "cpu" not in (_ROOT / "cgroup.subtree_control").read_text().split():
            raise NoQuotas("the top control group does not pass on `cpu`")
        # It waits on its input until it has been moved.
        with subprocess.Popen(
            [sys.executable, "-c", f"input()\n{_SPIN}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        ) as spinning:  # fmt: skip
            try:
                self.give("probe", [spinning.pid])
                said, _ = spinning.communicate("\n", 60)
            except BaseException:
                spinning.kill()
                raise
        return float(said)
