"""Running one upstream command: output into a log, Ctrl+C passed on, exit code kept."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from recipes.run_folder import RunFolder
from recipes.vllm.process import WarmPool

_PR_SET_PDEATHSIG = 1
# Loaded here: between fork and exec nothing may be.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class StageError(RuntimeError):
    """A stage cannot go on. `exit_code` is what the process should leave with."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def last_lines(log: Path, count: int = 12) -> str:
    """The end of a log, for an error message."""
    try:
        lines = log.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-count:])


def run_command(
    run: RunFolder,
    stage: str,
    argv: list[str],
    *,
    env: Mapping[str, str] | None = None,
    watch: Callable[[], None] | None = None,
    grace_s: float = 120.0,
    warm: WarmPool | None = None,
) -> None:
    """Run `argv` until it ends; output goes to `logs/<stage>.log`, the call into commands.jsonl.

    An interrupt (Ctrl+C, SIGTERM) is passed on to the command once, which then has `grace_s`
    seconds to save its work; a second interrupt ends it at once.

    Args:
        watch: called about twice a second while the command runs (progress; may raise to stop it).
        warm: fork the command from this process, which has upstream imported, if `argv` is a
            `speculators_patches run --module M -- ARGS`; others (torchrun) are started.

    Raises:
        StageError: the command failed; the message holds the end of its log.
        KeyboardInterrupt: after an interrupted command has ended.
    """
    log = run.log(stage)
    shown = with_environment(argv, env)
    start = time.monotonic()
    if warm is not None and argv[1:4] == ["-m", "speculators_patches", "run"]:
        code = 130  # of an interrupted one
        try:
            code = _run_forked(warm, argv, log, env, watch, grace_s)
        finally:
            run.record_command(stage, shown, code, time.monotonic() - start)
        return _check(stage, code, log)
    with log.open("ab") as out:
        # Its own session: a terminal's Ctrl+C reaches the command through us, and only once.
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            while process.poll() is None:
                if watch is not None:
                    watch()
                time.sleep(0.3)
        except BaseException:
            _stop(process, grace_s)
            run.record_command(stage, shown, process.returncode, time.monotonic() - start)
            raise
    run.record_command(stage, shown, process.returncode, time.monotonic() - start)
    return _check(stage, process.returncode, log)


def end_with_parent() -> None:
    """In the command, before it starts: SIGTERM when this process is killed (Linux).

    A command that was left behind would go on writing beside the one that is started next.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def with_environment(argv: list[str], env: Mapping[str, str] | None) -> list[str]:
    """`argv` as a command that sets `env` by itself and can be copied into a shell."""
    return ["env", *(f"{name}={value}" for name, value in env.items()), *argv] if env else argv


def _check(stage: str, returncode: int, log: Path) -> None:
    if returncode != 0:
        code = returncode if returncode > 0 else 128 - returncode
        raise StageError(
            f"{stage} failed with exit code {code}. The end of {log}:\n{last_lines(log)}", code
        )


def _run_forked(
    pool: WarmPool,
    argv: list[str],
    log: Path,
    env: Mapping[str, str] | None,
    watch: Callable[[], None] | None,
    grace_s: float,
) -> int:
    """As Popen and wait, in a fork of the pool; its exit code."""
    module, args = argv[argv.index("--module") + 1], argv[argv.index("--") + 1 :]
    cores = len(os.sched_getaffinity(0))
    process = pool.start(
        args, {"PYTHONUNBUFFERED": "1", **(env or {})}, log.absolute(), cores, module
    )
    try:
        while (code := process.poll()) is None:
            if watch is not None:
                watch()
            time.sleep(0.1)
    except BaseException:
        process.stop(grace_s)
        raise
    return code


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, then SIGKILL to the group after `grace_s` or at a second interrupt.

    Not SIGINT: what a shell starts with `&`, and its children, ignore that.
    """
    if process.poll() is not None:
        return
    try:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(grace_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
