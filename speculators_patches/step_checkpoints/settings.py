"""The flags of `step_checkpoints`, given beside upstream's own and taken out before it parses.

Each has an environment variable of the same name (SPECULATORS_PATCHES_CHECKPOINT_EVERY_STEPS, ...)
for launchers that can't add flags; a flag wins over its variable.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from speculators_patches.checkpointing.policy import Keep, When
from speculators_patches.step_checkpoints import best

_PREFIX = "SPECULATORS_PATCHES_"


@dataclass(frozen=True)
class Settings:
    """When to save, what to keep, and which differences to resume despite of.

    Attributes:
        despite: names of fingerprint fields that may differ from the checkpoint's.
        best_by: what makes a checkpoint the best, see `best`.
    """

    when: When = field(default_factory=When)
    keep: Keep = field(default_factory=Keep)
    despite: tuple[str, ...] = ()
    best_by: str = best.LOSS


class BadSetting(ValueError):
    """A flag or variable has a value that makes no sense; one sentence."""


def take(
    argv: Sequence[str], environment: Mapping[str, str] | None = None
) -> tuple[Settings, list[str]]:
    """The settings in `argv` and the environment, and `argv` without our flags.

    Raises:
        BadSetting: naming the flag or variable.
    """
    environment = os.environ if environment is None else environment
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in _NUMBERS:
        parser.add_argument(flag)
    parser.add_argument("--resume-despite", action="append", default=[])
    parser.add_argument(best.FLAG)
    try:
        found, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise BadSetting(str(error)) from None
    values = {
        flag: _number(flag, getattr(found, flag[2:].replace("-", "_")), environment)
        for flag in _NUMBERS
    }
    despite = found.resume_despite or [environment.get(_variable("--resume-despite"), "")]
    names = tuple(name.strip() for text in despite for name in text.split(",") if name.strip())
    best_by = found.best_by or environment.get(_variable(best.FLAG)) or best.LOSS
    if best_by not in best.KINDS:
        raise BadSetting(f"{best.FLAG} {best_by!r} is not one of {', '.join(best.KINDS)}")
    steps, minutes, last, stretch = (values[flag] for flag in _NUMBERS)
    try:
        when = When(
            every_steps=None if steps is None else int(steps),
            # 0: not by time.
            every_minutes=None if minutes == 0 else 10.0 if minutes is None else minutes,
        )
        keep = Keep(
            last=3 if last is None else int(last),
            every_steps=None if stretch is None else int(stretch),
        )
    except ValueError as error:
        raise BadSetting(str(error)) from None
    return Settings(when, keep, names, best_by), rest


# Flag -> whether it takes whole numbers only.
_NUMBERS = {
    "--checkpoint-every-steps": True,
    "--checkpoint-every-minutes": False,
    "--checkpoint-keep": True,
    "--checkpoint-keep-every": True,
}


def _variable(flag: str) -> str:
    return _PREFIX + flag[2:].replace("-", "_").upper()


def _number(flag: str, text: str | None, environment: Mapping[str, str]) -> float | None:
    where = flag
    if text is None:
        where = _variable(flag)
        text = environment.get(where) or None
    if text is None:
        return None
    try:
        return int(text) if _NUMBERS[flag] else float(text)
    except ValueError:
        kind = "a whole number" if _NUMBERS[flag] else "a number"
        raise BadSetting(f"{where} {text!r} is not {kind}") from None
