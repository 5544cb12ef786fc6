"""A folder that appears complete or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Readable JSON with a final newline."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """A staging folder beside ``target``; renamed to it when the block ends without an error.

    Files are on the disk before the rename. On an error the staging folder is removed and
    ``target`` does not appear. Raises ``FileExistsError`` where ``target`` exists already.
    """
    target = target.absolute()
    if target.exists():
        raise FileExistsError(f"{target} exists already; remove it or choose another folder.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.staging-", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)
        for path in sorted(staging.rglob("*")):
            _fsync(path)
        _fsync(staging)
        staging.rename(target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
