"""What is known of a server at the moment it is found stuck, dead or failing, kept in a file.

Stacks: SIGABRT makes Python print every thread's stack before it dies (`faulthandler`, switched on
for our servers). They are about to be replaced anyway, so that costs nothing.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from recipes.run_folder import write_atomically
from recipes.vllm import processes
from recipes.vllm.errors import cause_in_log, log_tail
from recipes.vllm.leftovers import size
from recipes.vllm.progress import Snapshot

_DUMP_S = 3.0
_TAIL_LINES = 300
_NOISE = "Extension modules: "  # a line of all C extensions after each stack


def capture(
    folder: Path,
    name: str,
    what: str,
    pids: Sequence[int],
    log: Path,
    snapshots: Sequence[Snapshot] = (),
) -> Path:
    """Writes `<folder>/<time>-<name>.txt`. Processes that still run are aborted for their stacks.

    Args:
        what: continues "server <name> ...".
        pids: the server's processes, parents first.
        log: its output, of which the end is kept.
        snapshots: the newest ones, oldest first.

    Returns:
        The file.
    """
    parts = [f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}: server {name} {what}"]
    cause = cause_in_log(log)
    if cause is not None:
        parts.append(f"its log says: {cause}")
    if pids:
        parts.append(f"memory of its processes: {size(processes.memory(pids))}")
        with contextlib.suppress(OSError, IndexError):
            free = Path("/proc/meminfo").read_text().splitlines()[2]
            parts.append(f"memory of the machine: {free}")
    if snapshots:
        parts.append("what was seen before (seconds before now):")
        parts += [f"  {_line(one, snapshots[-1].at)}" for one in snapshots]
    parts += [processes.describe(pid) for pid in pids]
    if pids:
        _dump_stacks(pids, log)
        parts.append(
            f"Its log follows; processes were sent SIGABRT for their stacks, children first: "
            f"{', '.join(map(str, reversed(pids)))}."
        )
    lines = [
        line for line in log_tail(log, _TAIL_LINES).splitlines() if not line.startswith(_NOISE)
    ]
    parts.append("\n".join([f"the end of {log}:", *lines]))
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{name.replace('/', '-')}.txt"
    number = 1
    while path.exists():
        number += 1
        path = path.with_name(f"{path.stem.partition('.')[0]}.{number}.txt")
    write_atomically(path, "\n".join(parts) + "\n")
    return path


def _dump_stacks(pids: Sequence[int], log: Path) -> None:
    """Children first: a parent that dies first takes them along, without a word."""
    processes.send(signal.SIGCONT, pids)  # a stopped process dumps nothing
    for pid in reversed(pids):
        before = _length(log)
        processes.send(signal.SIGABRT, [pid])
        deadline = time.monotonic() + _DUMP_S / len(pids)
        while time.monotonic() < deadline and _length(log) == before:
            time.sleep(0.02)
        time.sleep(0.05)  # the dump is many small writes


def _length(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:
        return 0


def _line(snapshot: Snapshot, now: float) -> str:
    return (
        f"{snapshot.at - now:7.1f}: health {snapshot.status or 'no answer'}, "
        f"work {snapshot.work}, waiting {snapshot.waiting}, errors {snapshot.errors}"
        + (f", ended with {snapshot.code}" if snapshot.code is not None else "")
    )
