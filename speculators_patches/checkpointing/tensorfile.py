"""Tensors in the safetensors format, written in pieces from memory that already holds them.

`safetensors.torch.save_file` first turns every tensor into a `bytes` copy while holding the GIL
(seconds for a gigabyte). The format is a length, a JSON header and the raw data, so we write it
ourselves; the library reads it back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load

from speculators_patches.checkpointing.errors import CheckpointError, CorruptError

# safetensors' names; https://github.com/huggingface/safetensors, `Dtype`.
_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def storable(tensor: torch.Tensor) -> bool:
    """Whether the format holds this tensor: dense, and of a dtype that it names."""
    return tensor.layout == torch.strided and tensor.dtype in _NAMES


def order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Names in file order: widest dtype first, so that data without gaps is aligned."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def header(names: Sequence[str], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Length and JSON header for data that follows in the order of `names` without gaps.

    Raises:
        CheckpointError: a tensor that the format can't hold.
    """
    content: dict[str, object] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if not storable(tensor):
            raise CheckpointError(
                f"tensor {name!r} ({tensor.dtype}, {tensor.layout}) can't be stored"
            )
        end = offset + tensor.numel() * tensor.element_size()
        content[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def parse(data: bytes, what: str) -> dict[str, torch.Tensor]:
    """CPU tensors of a safetensors file, read with the library.

    Raises:
        CorruptError: not a safetensors file.
    """
    try:
        return load(data)
    except Exception as error:  # noqa: BLE001 - the library's error class differs by version
        raise CorruptError(f"{what} is not a safetensors file ({error})") from None
