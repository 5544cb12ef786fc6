"""A server's processes as Linux shows them: who belongs to it, what each does, what it holds."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_STATUS = ("Name", "State", "PPid", "Threads", "VmRSS", "VmSwap", "SigPnd", "ShdPnd", "SigBlk")


def tree(root: int) -> list[int]:
    """`root` and everything it started, parents first; [] where there is no `/proc` or process."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in _PROC.iterdir():
            if entry.name.isdigit() and (parent := _parent(int(entry.name))) is not None:
                children.setdefault(parent, []).append(int(entry.name))
    found, ahead = [], [root] if _parent(root) is not None else []
    while ahead:
        pid = ahead.pop(0)
        found.append(pid)
        ahead += sorted(children.get(pid, []))
    return found


def memory(pids: Iterable[int]) -> int:
    """Bytes of memory that the processes hold together, shared pages counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def describe(pid: int) -> str:
    """What `/proc` tells of one process and its threads; parts that may not be read are left out.

    Kernel stacks need root. Where each thread sleeps (`wchan`) and its state usually do not.
    """
    folder = _PROC / str(pid)
    lines = [f"process {pid}: {_command(pid)}"]
    with contextlib.suppress(OSError):
        for line in (folder / "status").read_text().splitlines():
            if line.partition(":")[0] in _STATUS:
                lines.append("  " + line.replace("\t", " "))
    threads = []
    with contextlib.suppress(OSError):
        threads = sorted((folder / "task").iterdir(), key=lambda path: int(path.name))
    for thread in threads:
        name, state = _read(thread / "comm"), _state(thread / "stat")
        where = _read(thread / "wchan") or "?"
        lines.append(f"  thread {thread.name} {name}: state {state}, in {where}")
        lines += [f"    {line}" for line in _read(thread / "stack").splitlines()]
    return "\n".join(lines)


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Sends a signal to those that still exist."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _parent(pid: int) -> int | None:
    """None: no such process (any more), or a dead one that nobody has waited for."""
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 and fields[0] not in "ZX" else None


def _state(stat: Path) -> str:
    fields = _read(stat).rpartition(")")[2].split()
    return fields[0] if fields else "?"


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (
            (_PROC / str(pid) / "cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")[:300]
        )
    return "?"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
