"""The table of patches: every file in this folder, in alphabetical order.

The order matters only where two patches replace one target: the later one wraps the earlier.
Reading the table imports neither torch nor upstream.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType, ModuleType

from speculators_patches.registry import Patch


@cache
def table() -> Mapping[str, Patch]:
    """Patch name -> its record, in the order in which patches are applied."""
    found = {}
    for info in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        if info.name.startswith("_"):
            continue  # a private helper that several patches share
        found[info.name] = module_of(info.name).PATCH
    return MappingProxyType(found)


def module_of(name: str) -> ModuleType:
    """The module of one patch file."""
    return importlib.import_module(f"{__name__}.{name}")
