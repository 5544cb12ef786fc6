"""Every attribute of every loaded upstream module and class, to compare by identity."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

Snapshot = dict[tuple[str, str], Any]


def take(package: str = "speculators") -> Snapshot:
    """(module or module:class, attribute) -> the object itself."""
    seen: Snapshot = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != package or not isinstance(module, ModuleType):
            continue
        for attribute, value in list(vars(module).items()):
            seen[name, attribute] = value
            if isinstance(value, type) and value.__module__ == name:
                for member, inner in list(vars(value).items()):
                    seen[f"{name}:{value.__qualname__}", member] = inner
    return seen


def changed(before: Snapshot) -> list[tuple[str, str]]:
    """What was there `before` and is another object now, caches of the interpreter aside."""
    now = take()
    return [
        place
        for place, value in before.items()
        if now.get(place) is not value and place[1] not in ("__annotations__", "_abc_impl")
    ]
