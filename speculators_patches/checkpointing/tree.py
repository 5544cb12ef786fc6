"""State trees as exact JSON: no pickle, and nothing rounded.

A tree is made of dicts, lists, tuples, None, bool, int, float, str, bytes and leaves (tensors) that
the caller puts elsewhere under a name. JSON knows neither tuples, integer keys, bytes nor
infinities; those are wrapped as {"$kind": ...}. Finite floats are exact as they are: Python writes
the shortest decimal that reads back to the same bits.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any

from speculators_patches.checkpointing.errors import CheckpointError, CorruptError

# Given (path, value): True if the value was taken and is to be found under `path`.
Put = Callable[[str, Any], bool]
Get = Callable[[str], Any]


def encode(value: Any, put: Put, path: str = "") -> Any:
    """`value` as plain finite JSON.

    Args:
        put: asked first about every node that is not a plain container or scalar.

    Raises:
        CheckpointError: something that can't be stored without pickle; the text gives its path.
    """
    below = f"{path}/" if path else ""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):  # numpy's float64 too: the same bits
        value = float(value)
        return value if math.isfinite(value) else {"$float": value.hex()}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode("ascii")}
    if type(value) in (list, tuple):
        if {*map(type, value)} <= {int}:  # Python's random state is 625 of them
            items = list(value)
        else:
            items = [encode(one, put, f"{below}{i}") for i, one in enumerate(value)]
        return items if type(value) is list else {"$tuple": items}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: encode(one, put, f"{below}{key}") for key, one in value.items()}
        if all(type(key) in (str, int) for key in value):
            pairs = [[key, encode(one, put, f"{below}{key}")] for key, one in value.items()]
            return {"$items": pairs}
    elif put(path, value):
        return {"$leaf": path}
    raise CheckpointError(
        f"the state holds {type(value).__module__}.{type(value).__qualname__} at "
        f"{path or 'its root'!r}, which can't be stored exactly without pickle"
    )


def decode(value: Any, get: Get) -> Any:
    """The tree that `encode` was given; `get(path)` supplies the leaves.

    Raises:
        CorruptError: an unknown wrapping.
    """
    if isinstance(value, list):
        return [decode(one, get) for one in value]
    if not isinstance(value, dict):
        return value
    kind = next((key for key in value if key.startswith("$")), None)
    if kind is None:
        return {key: decode(one, get) for key, one in value.items()}
    content = value[kind]
    if kind == "$float":
        return float.fromhex(content)
    if kind == "$bytes":
        return base64.b64decode(content)
    if kind == "$tuple":
        return tuple(decode(one, get) for one in content)
    if kind == "$items":
        return {key: decode(one, get) for key, one in content}
    if kind == "$leaf":
        return get(content)
    raise CorruptError(f"the state tree holds an unknown wrapping {kind!r}")
