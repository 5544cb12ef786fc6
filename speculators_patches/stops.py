"""Ending a run on purpose: one sentence, a non-zero exit, and weights that are still good.

A patch that finds a run being spoilt raises `RunStopped` before the step that would do harm, so
that whoever saves on the way down (`step_checkpoints`) saves what is worth having.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

_Number = TypeVar("_Number", int, float)


class RunStopped(RuntimeError):
    """Training ended before a bad step. The text says what happened, where, and what to do."""


def say_and_exit(main: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls upstream's command; a `RunStopped` becomes one line on stderr and exit code 1.

    Raises:
        SystemExit: the run was stopped.
    """
    try:
        return main(*args, **kwargs)
    except RunStopped as stop:
        raise SystemExit(f"speculators_patches: training stopped: {stop}") from stop


def setting(name: str, default: _Number, low: float, high: float) -> _Number:
    """A number from the environment, of `default`'s type.

    Raises:
        RunStopped: the value is no number, or outside low..high.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = type(default)(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        kind = "a whole number" if isinstance(default, int) else "a number"
        raise RunStopped(
            f"{name}={text!r} is not {kind} from {low:g} to {high:g}; default {default}"
        )
    return value
