"""Named instants of a save at which a test can make the process die, fail or stall.

`SPECULATORS_PATCHES_FAILPOINTS="commit.renamed=kill;tensors.chunk=sleep:0.5;report.chunk=eio@2"`
Each item is `POINT=ACTION[:ARGUMENT][@NTH]`: at the NTH time (default: every time; `kill`: the
first) that POINT is reached, ACTION is done:

    kill      SIGKILL to this very process: no handler, no cleanup, no flush
    enospc    OSError(ENOSPC), as from a full disk
    eio       OSError(EIO), as from a failing one
    sleep:S   wait S seconds, as on a slow one

Without the variable `hit()` costs one test of an empty dictionary.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass

VARIABLE = "SPECULATORS_PATCHES_FAILPOINTS"

# A file of kind K passes K.chunk before every piece written (at least two pieces a file, so that
# K.chunk@2 leaves a torn one), K.written before its fsync and K.synced after it.
FILE_KINDS = ("origin", "tensors", "tree", "report", "manifest", "pointer")
POINTS = (
    *(f"{kind}.{moment}" for kind in FILE_KINDS for moment in ("chunk", "written", "synced")),
    "stage.created",
    "stage.synced",
    "commit.renamed",
    "commit.parent_synced",
    "pointer.replaced",
    "prune.renamed",
    "prune.unlinked",
    "prune.done",
    "sweep.unlinked",
)
ACTIONS = ("kill", "enospc", "eio", "sleep")


@dataclass
class _Armed:
    action: str
    seconds: float
    nth: int | None
    reached: int = 0


_armed: dict[str, _Armed] = {}


def configure(specification: str | None) -> None:
    """Arm the points of `specification` (see the module's text) and disarm all others.

    Raises:
        ValueError: an unknown point or action, or a malformed item; the text names the item.
    """
    armed: dict[str, _Armed] = {}
    for item in filter(None, (part.strip() for part in (specification or "").split(";"))):
        point, _, rest = item.partition("=")
        rest, _, nth = rest.partition("@")
        action, _, argument = rest.partition(":")
        if point not in POINTS or action not in ACTIONS or (action == "sleep") != bool(argument):
            raise ValueError(
                f"{VARIABLE}: {item!r} is not POINT=ACTION[:ARGUMENT][@NTH] "
                f"with POINT in {', '.join(POINTS)} and ACTION in {', '.join(ACTIONS)}"
            )
        armed[point] = _Armed(action, float(argument or 0), int(nth) if nth else None)
    _armed.clear()
    _armed.update(armed)


def hit(point: str) -> None:
    """Do what is armed at `point`; nothing at all when nothing is armed."""
    if not _armed:
        return
    armed = _armed.get(point)
    if armed is None:
        return
    armed.reached += 1
    if armed.nth is not None and armed.reached != armed.nth:
        return
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal may be delivered to another thread first
    elif armed.action == "sleep":
        time.sleep(armed.seconds)
    else:
        code = errno.ENOSPC if armed.action == "enospc" else errno.EIO
        raise OSError(code, os.strerror(code), f"failpoint {point}")


configure(os.environ.get(VARIABLE))
