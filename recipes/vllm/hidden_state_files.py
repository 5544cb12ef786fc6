"""Looking into a hidden-states file without torch: shapes, and whether every value is finite."""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# safetensors dtype -> (array type code, bits that are all ones in an infinity or a NaN)
_EXPONENTS = {"BF16": ("H", 0x7F80), "F16": ("H", 0x7C00), "F32": ("I", 0x7F800000)}


def wait_until_written(path: Path, timeout: float = 30.0) -> None:
    """Returns when the writer has released its lock file and `path` exists.

    Raises:
        TimeoutError: it has not within `timeout` seconds.
    """
    lock = Path(f"{path}.lock")
    deadline = time.monotonic() + timeout
    while True:
        if lock.exists():
            descriptor = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists():
                    return
            except BlockingIOError:
                pass
            finally:
                os.close(descriptor)
        elif path.exists():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(str(path))
        time.sleep(0.02)


def discard(path: Path) -> None:
    """Removes a file and its lock; fine if they are gone."""
    path.unlink(missing_ok=True)
    Path(f"{path}.lock").unlink(missing_ok=True)


def discard_when_written(path: Path) -> None:
    """As `discard`, after the writer has finished, so that nothing appears afterwards."""
    with contextlib.suppress(TimeoutError, OSError):
        wait_until_written(path)
    discard(path)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape, from the file's header."""
    return {name: tuple(entry["shape"]) for name, entry in _header(path)[0].items()}


def is_finite(path: Path, tensor: str) -> bool:
    """False if `tensor` (bf16, fp16 or fp32) holds an infinity or a NaN."""
    header, start = _header(path)
    entry = header[tensor]
    code, exponent = _EXPONENTS[entry["dtype"]]
    first, last = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(start + first)
        values = array.array(code, file.read(last - first))
    if sys.byteorder == "big":
        values.byteswap()
    return all(value & exponent != exponent for value in values)


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors' entries, and where their bytes start."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size
