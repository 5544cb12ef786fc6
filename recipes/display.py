"""What is happening, how far it is, and how long it will take: on a terminal or in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

LOG_INTERVAL_S = 10.0


class Activity:
    """One running piece of work; `update` may be called as often as wanted."""

    def __init__(self, display: Display, name: str, expected_s: float | None) -> None:
        self._display = display
        self.name = name
        self._expected = expected_s
        self._start = time.monotonic()
        self._last_line = 0.0
        self._task: TaskID | None = None
        if display.progress is not None:
            self._task = display.progress.add_task(name, total=1.0, note=self._remaining(0.0))
        else:
            display.line(f"{name}: started{self._hint()}")

    def _hint(self) -> str:
        return "" if self._expected is None else f" (expected about {_clock(self._expected)})"

    def _remaining(self, fraction: float | None) -> str:
        elapsed = time.monotonic() - self._start
        if fraction and fraction > 0.05:
            return f"about {_clock(max(0.0, elapsed / fraction - elapsed))} left"
        if self._expected is not None:
            return f"about {_clock(max(0.0, self._expected - elapsed))} left"
        return ""

    def update(self, note: str = "", fraction: float | None = None) -> None:
        """Show `note`; `fraction` (0 to 1) moves the bar and the time left."""
        left = self._remaining(fraction)
        text = ", ".join(part for part in (note, left) if part)
        if self._display.progress is not None and self._task is not None:
            self._display.progress.update(self._task, completed=fraction, note=text)
        elif time.monotonic() - self._last_line >= LOG_INTERVAL_S:
            self._last_line = time.monotonic()
            self._display.line(f"{self.name}: {text}")

    def finish(self, outcome: str) -> None:
        seconds = time.monotonic() - self._start
        if self._display.progress is not None and self._task is not None:
            self._display.progress.remove_task(self._task)
        self._display.line(f"{self.name}: {outcome} ({_clock(seconds)})")


class Display:
    """A live view on a terminal; plain dated lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._start = time.monotonic()
        self.progress: Progress | None = None
        self._running: list[Activity] = []
        if self.console.is_terminal:
            self.progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
            )
            self.progress.start()

    def line(self, text: str) -> None:
        self.console.print(
            f"[{_clock(time.monotonic() - self._start)}] {text}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        if not self.console.is_terminal:
            sys.stderr.flush()

    @contextmanager
    def activity(self, name: str, expected_s: float | None = None) -> Iterator[Activity]:
        """Show `name` while the block runs; say how it ended, also when it raised."""
        activity = Activity(self, name, expected_s)
        self._running.append(activity)
        try:
            yield activity
        except BaseException as e:
            asked = isinstance(e, KeyboardInterrupt | SystemExit)
            activity.finish("interrupted" if asked else "failed")
            raise
        finally:
            self._running.remove(activity)
        activity.finish("done")

    def note(self, text: str) -> None:
        """Say `text` beside whatever is running now."""
        if self._running:
            self._running[-1].update(text)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()


def _clock(seconds: float) -> str:
    whole = int(seconds + 0.5)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 60}:{whole % 60:02d}"
