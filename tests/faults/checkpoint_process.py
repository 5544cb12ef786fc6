"""Training processes to be killed. Not a test module.

`Lives` starts `python -m tests.faults.checkpoint_process`, which imports torch once and then forks
one real training process (a life) per request: a life costs milliseconds instead of the seconds
that importing torch takes. A life trains the small run of `tests/unit/checkpoint_run.py` to TOTAL
steps, saving every step, resuming by itself. It appends every loss to ROOT/losses and at the end
writes ROOT/result.json with the SHA-256 of everything that must be bitwise equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from speculators_patches.checkpointing import failpoints
from speculators_patches.checkpointing.policy import When
from tests.unit.checkpoint_run import at, build, checkpoints

TOTAL = 12


def say(line: str) -> None:
    """One write: `print` makes two where output is unbuffered, and two processes share the pipe."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def live(root: Path, wait: bool) -> None:
    """One life. With `wait` each save is waited for, so that their number does not vary."""
    run = build()
    with checkpoints(root / "saves", run, when=When(1, None)) as saves:
        step = 0
        if (found := saves.find()) is not None:
            saves.restore(found)
            saves.restore_rng(found)
            step = found.cursor.global_step
        say(f"from {step}")
        with (root / "losses").open("a") as losses:
            while step < TOTAL:
                (loss,) = run.train(1)
                step += 1
                losses.write(f"{step} {loss.hex()}\n")
                losses.flush()
                saves.step(at(step))
                if wait:
                    saves.flush(60)
        saves.save(at(step), "final", wait_s=60, commit_s=60)
    digest = hashlib.sha256(repr(sorted(run.bits().items())).encode()).hexdigest()
    (root / "result.json").write_text(json.dumps({"sha256": digest, "steps": step}))


def serve() -> None:
    """Fork a life for each request line; print its pid, what it prints, and its exit status."""
    build().train(1)  # torch imports half of itself at the first optimizer step
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                failpoints.configure(request["failpoint"])
                live(Path(request["root"]), request["wait"])
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        say(f"pid {pid}")
        _, status = os.waitpid(pid, 0)
        say(f"exit {os.waitstatus_to_exitcode(status)}")


class Lives:
    """The forking process, seen from a test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def begin(self, root: Path, failpoint: str = "", *, wait: bool = False) -> int:
        """Start a life; its pid, once it has resumed."""
        self._ask(root, failpoint, wait)
        said = dict(self._say("pid", "from") for _ in range(2))
        return said["pid"]

    def _ask(self, root: Path, failpoint: str, wait: bool) -> None:
        root.mkdir(parents=True, exist_ok=True)
        request: dict[str, Any] = {"root": str(root), "failpoint": failpoint, "wait": wait}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def begin_and_die(self, root: Path, failpoint: str) -> None:
        """A life that must be killed by `failpoint` before it has resumed."""
        self._ask(root, failpoint, wait=False)
        self._say("pid")
        assert self.end() == -signal.SIGKILL

    def end(self) -> int:
        """Wait for the life to end; its exit code, negative for a signal."""
        return self._say("exit")[1]

    def _say(self, *words: str) -> tuple[str, int]:
        assert self._process.stdout is not None
        word, _, number = self._process.stdout.readline().partition(" ")
        assert word in words, (word, words)
        return word, int(number)


if __name__ == "__main__":
    serve()
