"""One rank's part of a committed checkpoint, read and verified."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from speculators_patches.checkpointing import tensorfile, tree
from speculators_patches.checkpointing.errors import CorruptError
from speculators_patches.checkpointing.reading import Record


def file_names(rank: int) -> tuple[str, str]:
    """(tensors, everything else) of `rank`."""
    return f"rank-{rank:05d}.safetensors", f"rank-{rank:05d}.json"


def report_name(rank: int) -> str:
    """The note by which a rank other than 0 tells rank 0 that its part is on disk."""
    return f"rank-{rank:05d}.report"


@dataclass(frozen=True)
class SavedRank:
    """Attributes:
    tree: "rng" and "extra"; where this rank held the model also "model" (name -> CPU tensor),
        "optimizers", "schedulers".
    placements: path -> how a sharded tensor was laid out.
    on_host: paths of tensors that lived in host memory.
    frozen: name -> SHA-256 of tensors that are not stored.
    """

    tree: dict[str, Any]
    placements: dict[str, Any]
    on_host: frozenset[str]
    frozen: dict[str, str]

    @staticmethod
    def name_of(path: str) -> str:
        """Parameter name in a path `optimizers/N/state/NAME/KEY`."""
        return path.split("/", 3)[3].rpartition("/")[0]


def _verified(record: Record, name: str) -> bytes:
    if record.manifest is None or name not in record.manifest.files:
        raise CorruptError(f"{record.name} holds no {name}")
    try:
        data = (record.path / name).read_bytes()
    except OSError as error:
        raise CorruptError(f"{record.name}: {name} can't be read ({error})") from None
    if hashlib.sha256(data).hexdigest() != record.manifest.files[name].sha256:
        raise CorruptError(f"{record.name}: {name} is altered")
    return data


def read(record: Record, rank: int) -> SavedRank:
    """What `rank` stored. The bytes used are the bytes verified (one pass).

    Raises:
        CorruptError: a file is missing or altered.
    """
    tensor_file, tree_file = file_names(rank)
    tensors = tensorfile.parse(_verified(record, tensor_file), f"{record.name}: {tensor_file}")
    try:
        document = json.loads(_verified(record, tree_file))
        return SavedRank(
            tree=tree.decode(document["tree"], tensors.__getitem__),
            placements=document["placements"],
            on_host=frozenset(document["on_host"]),
            frozen=document["frozen"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{record.name}: {tree_file} is not readable ({error})") from None
