"""The manifest: what a committed checkpoint consists of, written last and checked to the byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from speculators_patches.checkpointing.errors import CorruptError

MANIFEST = "manifest.json"
ORIGIN = "origin.json"
FORMAT = 1

# Only such names are ever written into a checkpoint folder, and only such names are ever removed.
FILE_NAME = re.compile(r"(rank-\d{5}\.(safetensors|json|report)|origin\.json|manifest\.json)")


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One checkpoint.

    Attributes:
        name: the folder's own name; a folder under another name is not this checkpoint.
        sequence: commit number within the store, strictly increasing; decides what is newest.
        step: optimizer steps done.
        tags: why it was saved: "steps", "minutes", "epoch", "best", "final", "shutdown", ...
        created: UTC time, ISO 8601.
        world_size: ranks that took part.
        meta: plain JSON of the run (cursor, fingerprint, best value; see `run.py`).
        files: every other file of the folder.
    """

    name: str
    sequence: int
    step: int
    tags: tuple[str, ...]
    created: str
    world_size: int
    meta: Mapping[str, Any]
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files listed."""
        return sum(entry.size for entry in self.files.values())


def _canonical(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def seal(content: Mapping[str, Any]) -> bytes:
    """JSON with its own SHA-256 in the field `digest`, in the one canonical form."""
    digest = hashlib.sha256(_canonical(content)).hexdigest()
    return _canonical({**content, "digest": digest})


def unseal(data: bytes, what: str) -> dict[str, Any]:
    """Content of a sealed JSON file.

    Raises:
        CorruptError: one byte differs from what `seal` wrote, white space included.
    """
    try:
        content = json.loads(data.decode("ascii"))
    except ValueError:
        raise CorruptError(f"{what} is not readable as JSON") from None
    if not isinstance(content, dict) or "digest" not in content:
        raise CorruptError(f"{what} carries no digest")
    digest = content.pop("digest")
    if seal(content) != data or hashlib.sha256(_canonical(content)).hexdigest() != digest:
        raise CorruptError(f"{what} does not match its own digest")
    return content


def encode(manifest: Manifest) -> bytes:
    """The manifest's bytes. `meta` must be plain finite JSON (ValueError, TypeError otherwise)."""
    return seal(asdict(manifest))


def decode(data: bytes) -> Manifest:
    """The manifest in `data`.

    Raises:
        CorruptError: altered, of another format, or listing a name that we never write.
    """
    content = unseal(data, MANIFEST)
    if content.get("format") != FORMAT:
        raise CorruptError(
            f"{MANIFEST} has format {content.get('format')!r}, this version reads {FORMAT}"
        )
    try:
        files = {name: FileEntry(**entry) for name, entry in content.pop("files").items()}
        manifest = Manifest(
            **{**content, "tags": tuple(content["tags"])},
            files=files,
        )
    except (KeyError, TypeError, AttributeError):
        raise CorruptError(f"{MANIFEST} lacks fields of format {FORMAT}") from None
    for name in files:
        if not FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise CorruptError(f"{MANIFEST} lists {name!r}, a name that is never written")
    return manifest
