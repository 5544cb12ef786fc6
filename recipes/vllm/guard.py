"""Keeps one server: starts it in a process group of its own and ends the group with its owner.

    python -I guard.py GRACE LOG COMMAND...

The owner holds the other end of standard input. When that closes, for whatever reason (the owner
stopped the server, was killed, or crashed), or on SIGTERM, the server is asked to stop and after
GRACE seconds killed with everything it started. The guard's exit code is the server's, 128 + n
where signal n ended it.
"""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from recipes.vllm.group import Group, adopt_orphans


def main() -> int:
    """Runs until the server has ended; returns the exit code."""
    grace, log, command = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    stopping = False

    def stop(*_: int | FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    adopt_orphans()
    with open(log, "ab") as out:  # noqa: PTH123
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    group = Group(server.pid)
    owner = [0]
    while group.poll() is None:
        readable, _, _ = select.select(owner, [], [], 0.05)
        if readable and not os.read(0, 4096):
            owner, stopping = [], True
        if stopping:
            group.ask_to_stop(grace)
            stopping = False
    code = group.code or 0
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
