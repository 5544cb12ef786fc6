"""Writing so that it is still there after the power came back.

Three rules that the rest of the package builds on: a file counts only after its own fsync; a name
counts only after the fsync of the folder that holds it; a rename is the only atomic step. All
writing is unbuffered, so a killed process leaves exactly what it had handed to the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from speculators_patches.checkpointing.failpoints import hit
from speculators_patches.checkpointing.manifest import FileEntry

# 8 MiB: both `os.write` and `hashlib` release the GIL for the whole piece, and between two pieces
# the training thread gets it without waiting.
PIECE = 8 * 2**20

Chunk = bytes | bytearray | memoryview


def _pieces(chunks: Iterable[Chunk]) -> Iterator[memoryview]:
    """The chunks cut to PIECE bytes; the first one in two, so that every file can be torn."""
    first = True
    for chunk in chunks:
        view = memoryview(chunk).cast("B")
        if first and len(view) > 1:
            first = False
            half = min(len(view) // 2, PIECE)
            yield view[:half]
            view = view[half:]
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]


def write_file(path: Path, chunks: Iterable[Chunk], kind: str) -> FileEntry:
    """Create `path` (it must not exist), write `chunks`, fsync; size in bytes and SHA-256.

    Args:
        kind: one of `failpoints.FILE_KINDS`, names the failpoints passed.

    Raises:
        OSError: what the file system said; a partial file may be left for the caller to remove.
    """
    digest = hashlib.sha256()
    size = 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        for piece in _pieces(chunks):
            hit(f"{kind}.chunk")
            digest.update(piece)
            size += len(piece)
            while piece:
                piece = piece[os.write(descriptor, piece) :]
        hit(f"{kind}.written")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    hit(f"{kind}.synced")
    return FileEntry(size=size, sha256=digest.hexdigest())


def sync_folder(path: Path) -> None:
    """fsync a folder, so that the names created in it or moved into it survive power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems refuse to fsync a folder; their creates are synchronous.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create `path` and what is missing above it, each name fsynced in the folder that holds it.

    Without this a durable checkpoint could lie in a folder that power loss takes away.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
    with contextlib.suppress(PermissionError):  # a parent that we may not read was not made by us
        sync_folder(path.parent)  # also if it was there: its maker may have died before this


def temporary_name(name: str) -> str:
    """A hidden, unique name beside `name`; `is_temporary` recognises it."""
    return f".{name}.{secrets.token_hex(6)}.tmp"


def replace_file(path: Path, content: bytes, kind: str) -> None:
    """Put `content` at `path` in one atomic step: a reader sees the old file or the new one."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        write_file(temporary, [content], kind)
        temporary.replace(path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    if kind == "pointer":
        hit("pointer.replaced")
    sync_folder(path.parent)


def hash_file(path: Path, *, drop_cache: bool = False) -> FileEntry:
    """Size in bytes and SHA-256 of what is at `path` now.

    Args:
        drop_cache: ask the kernel to forget its cached copy first, so that the bytes come from the
            device (what a read-back is for). Only a request; harmless where it is not granted.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb", buffering=0) as file:
        if drop_cache and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        while count := file.readinto(view):
            digest.update(view[:count])
            size += count
    return FileEntry(size=size, sha256=digest.hexdigest())
