"""Is a server getting anywhere? Judged from snapshots alone; no I/O, no clock of its own.

vLLM's `/health` stays 200 while its scheduler is deadlocked, and a stopped engine reports the
gauges of the moment when it stopped. So the judge looks at counters: while somebody waits for an
answer they must move. Whoever takes the snapshots sends a request of its own when they have been
still for a while (`is_canary_due`), so that somebody always does.

What is judged is the server, not the single request: vLLM tells the ages of none. One that hangs
while others are answered is not seen here; its client's time-out ends it, and it is asked again
(request_timeout in training and extraction, regenerate_read_timeout in regenerate).

Time is counted between snapshots, never more than `longest_step_s` for one pair: a watcher that was
itself suspended, with the machine or by a debugger, must not blame the server for it.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Limits:
    """How long is too long, in seconds.

    Attributes:
        poll_s: between snapshots.
        quiet_s: without progress until a request of our own is sent.
        stall_s: without progress, while a request waits, until the server counts as stuck.
        silent_s: without an answer from `/health`.
        unhealthy_s: of answers >= 500 from `/health`, which vLLM gives once its engine is dead.
        errors: requests answered >= 500 without any progress between them.
        restart_s: for starting it again, from the moment it was found out; then we give up.
        restarts: in an hour; one more and we give up.
    """

    poll_s: float = 5.0
    quiet_s: float = 20.0
    stall_s: float = 180.0
    silent_s: float = 60.0
    unhealthy_s: float = 10.0
    errors: int = 5
    restart_s: float = 900.0
    restarts: int = 8

    @property
    def longest_step_s(self) -> float:
        """The most that one pair of snapshots counts for."""
        return 3 * self.poll_s + 15.0


@dataclass(frozen=True)
class Snapshot:
    """What a server showed at one moment.

    Attributes:
        at: seconds on a monotonic clock.
        code: its exit code, None while its process runs.
        status: HTTP status of `/health`, None without an answer.
        work: tokens read and written and requests finished since it started; None: unknown.
        waiting: requests that it has not finished, ours included; None: unknown.
        errors: requests that it answered with a status >= 500 since it started; None: unknown.
    """

    at: float
    code: int | None = None
    status: int | None = None
    work: float | None = None
    waiting: int | None = None
    errors: float | None = None


@dataclass(frozen=True)
class Seen:
    """What the snapshots so far amount to; begin with `Seen()`.

    Attributes:
        quiet_s: seconds without progress.
        stalled_s: of those, the ones in which a request waited. Not set back when nobody waits for
            a moment: clients give up and ask again.
        silent_s: seconds in a row without an answer.
        unhealthy_s: seconds in a row of a bad `/health`.
        errors: failed requests since the last progress.
    """

    last: Snapshot | None = None
    quiet_s: float = 0.0
    stalled_s: float = 0.0
    silent_s: float = 0.0
    unhealthy_s: float = 0.0
    errors: float = 0.0


State = Literal["fine", "ended", "silent", "unhealthy", "failing", "stuck"]


@dataclass(frozen=True)
class Verdict:
    """What is to be thought of the server; `what` continues the sentence "the server ..."."""

    state: State
    what: str = ""

    @property
    def is_fine(self) -> bool:
        return self.state == "fine"


def see(seen: Seen, now: Snapshot, limits: Limits) -> Seen:
    """`seen` with one snapshot more; snapshots come in order of `at`."""
    last = seen.last
    if last is None:
        return replace(seen, last=now)
    step = min(now.at - last.at, limits.longest_step_s)
    known = _with_known(now, last)
    moved = now.work is not None and last.work is not None and now.work != last.work
    quiet = Seen() if moved else seen
    failed = max(0.0, (known.errors or 0.0) - (last.errors or 0.0))
    return Seen(
        last=known,
        quiet_s=0.0 if moved else quiet.quiet_s + step,
        stalled_s=quiet.stalled_s + (step if known.waiting and not moved else 0.0),
        silent_s=0.0 if now.status is not None else seen.silent_s + step,
        unhealthy_s=seen.unhealthy_s + step
        if now.status is not None and now.status >= 500
        else 0.0,
        errors=quiet.errors + (0.0 if moved else failed),
    )


def _with_known(now: Snapshot, last: Snapshot) -> Snapshot:
    """A server that does not answer is taken to be as it was."""
    return replace(
        now,
        work=last.work if now.work is None else now.work,
        waiting=last.waiting if now.waiting is None else now.waiting,
        errors=last.errors if now.errors is None else now.errors,
    )


def verdict(seen: Seen, limits: Limits) -> Verdict:
    """The worst that can be said of the server after these snapshots."""
    last = seen.last
    if last is not None and last.code is not None:
        return Verdict("ended", _ending(last.code))
    if seen.unhealthy_s >= limits.unhealthy_s:
        return Verdict("unhealthy", f"has called itself unhealthy for {seen.unhealthy_s:.0f} s")
    if seen.errors >= limits.errors:
        return Verdict("failing", f"has answered {seen.errors:.0f} requests with errors in a row")
    if seen.silent_s >= limits.silent_s:
        return Verdict("silent", f"has not answered for {seen.silent_s:.0f} s")
    if seen.stalled_s >= limits.stall_s:
        return Verdict(
            "stuck", f"has made no progress for {seen.stalled_s:.0f} s while a request waits"
        )
    return Verdict("fine")


def _ending(code: int) -> str:
    """An exit code as a clause; 128 + n is signal n."""
    if code == 128 + signal.SIGKILL:
        return "was killed (SIGKILL), as Linux does when memory runs out"
    try:
        return f"was ended by {signal.Signals(code - 128).name}"
    except ValueError:
        return f"has ended with code {code}"


def is_canary_due(seen: Seen, limits: Limits) -> bool:
    """Whether it has been still for so long that a request of our own should find out why."""
    return seen.quiet_s >= limits.quiet_s
