"""Names of the folders in a store, and what each says.

The sequence number, not the step, decides what is newest: after a fall-back to an older checkpoint
the same step is reached again, and the second time must win.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

STORE = "step_checkpoints"
POINTER = "LATEST"

_COMMITTED = re.compile(r"ckpt-(\d{6,})-step-(\d{8,})")
_HIDDEN = re.compile(r"\.(staging|pruned)-(ckpt-(\d{6,})-step-(\d{8,}))-[0-9a-f]{12}")
_TEMPORARY = re.compile(r"\.LATEST\.[0-9a-f]{12}\.tmp")


@dataclass(frozen=True)
class Name:
    """A folder name taken apart; `hidden` is None, "staging" or "pruned"."""

    text: str
    sequence: int
    step: int
    hidden: str | None = None
    committed: str = ""


def committed_name(sequence: int, step: int) -> str:
    return f"ckpt-{sequence:06d}-step-{step:08d}"


def hidden_name(kind: str, committed: str) -> str:
    """A fresh name for a folder on its way in ("staging") or out ("pruned")."""
    return f".{kind}-{committed}-{secrets.token_hex(6)}"


def parse(text: str) -> Name | None:
    """The name's parts, or None for a name that is not one of ours."""
    if match := _COMMITTED.fullmatch(text):
        name = Name(text, int(match[1]), int(match[2]), None, text)
    elif match := _HIDDEN.fullmatch(text):
        name = Name(text, int(match[3]), int(match[4]), match[1], match[2])
    else:
        return None
    # One spelling per number: `ckpt-0000001-...` (one zero too many) is somebody else's.
    return name if committed_name(name.sequence, name.step) == name.committed else None


def is_temporary_pointer(text: str) -> bool:
    return _TEMPORARY.fullmatch(text) is not None
