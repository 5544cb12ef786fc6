"""The small formats: state trees as JSON, tensors as safetensors, the manifest, the fingerprint."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from speculators_patches.checkpointing import fingerprint as fp
from speculators_patches.checkpointing import manifest, names, tensorfile, tree
from speculators_patches.checkpointing.arena import Arena
from speculators_patches.checkpointing.errors import CheckpointError, CorruptError, NotSameRunError
from tests.unit.checkpoint_run import raw

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
KEYS = st.text(max_size=5) | st.integers(-3, 3)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: Any, b: Any) -> bool:
    """Equal in type and bits, all the way down, dictionary order included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items()))
    return bool(a == b)


@given(TREES)
def test_trees_round_trip_through_json_exactly(value: Any) -> None:
    text = json.dumps(tree.encode(value, lambda *_: False), allow_nan=False)
    assert same(tree.decode(json.loads(text), lambda _: None), value)


def test_nan_and_numpy_scalars() -> None:
    import numpy as np

    encoded = tree.encode([math.nan, np.float64(0.1)], lambda *_: False)
    nan, tenth = tree.decode(json.loads(json.dumps(encoded)), lambda _: None)
    assert math.isnan(nan)
    assert tenth == 0.1
    with pytest.raises(CheckpointError, match="complex at 'a/1'"):
        tree.encode({"a": [1, 1j]}, lambda *_: False)


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.booleans()),
        max_size=6,
    ),
    st.integers(0, 2**32),
)
def test_tensor_files_are_safetensors_to_the_bit(plan: dict[str, Any], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (dtype, shape, transposed) in plan.items():
        size = math.prod(shape) * dtype.itemsize
        data = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
        if dtype == torch.bool:
            data %= 2
        tensor = data.view(dtype).reshape(shape)
        tensors[name] = tensor.mT if transposed and tensor.ndim >= 2 else tensor
    tensors.pop("__metadata__", None)
    arena = Arena()
    arena.copy_in({"before": torch.ones(100)})  # reused memory must not shine through
    data = b"".join(bytes(chunk) for chunk in arena.copy_in(tensors).chunks())
    for read in (load(data), tensorfile.parse(data, "it")):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert raw(read[name]) == raw(tensor)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert {n: raw(t) for n, t in load(save(contiguous)).items()} == {
        n: raw(t) for n, t in load(data).items()
    }


def test_a_tensor_that_the_format_lacks_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"'z' \(torch.complex64"):
        Arena().copy_in({"z": torch.zeros(2, dtype=torch.complex64)})


def a_manifest(**changes: Any) -> manifest.Manifest:
    content: dict[str, Any] = {
        "name": "ckpt-000001-step-00000002",
        "sequence": 1,
        "step": 2,
        "tags": ("steps", "best"),
        "created": "2026-11-23T00:00:00Z",
        "world_size": 1,
        "meta": {"x": [1, 0.1, None]},
        "files": {"origin.json": manifest.FileEntry(3, "ab")},
    }
    return manifest.Manifest(**{**content, **changes})


def test_every_flipped_bit_of_a_manifest_is_noticed() -> None:
    data = manifest.encode(a_manifest())
    assert manifest.decode(data) == a_manifest()
    for position in range(len(data)):
        for bit in range(8):
            torn = bytearray(data)
            torn[position] ^= 1 << bit
            with pytest.raises(CorruptError):
                manifest.decode(bytes(torn))
        with pytest.raises(CorruptError):
            manifest.decode(data[:position])


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "notes.txt", "manifest.json"])
def test_a_manifest_can_only_list_names_that_are_ours(name: str) -> None:
    data = manifest.encode(a_manifest(files={name: manifest.FileEntry(1, "ab")}))
    with pytest.raises(CorruptError, match="a name that is never written"):
        manifest.decode(data)


@pytest.mark.parametrize(
    "text",
    ["ckpt-1-step-2", "ckpt-0000001-step-00000002", "checkpoint_best", "0", ".staging-x", ""],
)
def test_other_peoples_names_are_not_ours(text: str) -> None:
    assert names.parse(text) is None


@given(st.integers(0, 10**9), st.integers(0, 10**12))
def test_names_round_trip(sequence: int, step: int) -> None:
    committed = names.committed_name(sequence, step)
    for text in (committed, names.hidden_name("staging", committed)):
        name = names.parse(text)
        assert name is not None
        assert (name.sequence, name.step, name.committed) == (sequence, step, committed)


def test_fingerprint_names_every_difference() -> None:
    saved = fp.to_json([fp.Field("a", 1), fp.Field("b", [1, 2]), fp.Field("gone", "x")])
    now = [fp.Field("a", True), fp.Field("b", [1, 2]), fp.Field("new", None)]
    assert [d.name for d in fp.compare(saved, now)] == ["a", "new", "gone"]
    with pytest.raises(NotSameRunError) as refusal:
        fp.check(saved, now, despite=["new"])
    assert "a was 1 in the checkpoint and is true now; allow it with --resume-despite a" in str(
        refusal.value
    )
    assert 'gone was "x" in the checkpoint and is not recorded now' in str(refusal.value)
    assert "new" not in str(refusal.value).replace("new in", "")
    assert len(fp.check(saved, now, despite=["a", "new", "gone"])) == 3


def test_what_cannot_be_overridden_is_refused_all_the_same() -> None:
    with pytest.raises(NotSameRunError, match="can't be overridden"):
        fp.check({"world_size": 1}, [fp.Field("world_size", 2, False)], despite=["world_size"])


def test_overriding_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"--resume-despite b: no such field; there are a"):
        fp.check({"a": 1}, [fp.Field("a", 1)], despite=["b"])


def test_digest_tells_order_and_length() -> None:
    assert len({fp.digest(x) for x in ([1, 2], [2, 1], [1, 2, 0], [])}) == 4
    with pytest.raises(ValueError, match="two fields named 'a'"):
        fp.to_json([fp.Field("a", 1), fp.Field("a", 1)])


def test_importing_the_store_and_its_command_line_imports_no_torch() -> None:
    code = (
        "import sys, speculators_patches.checkpointing.cli, speculators_patches.checkpointing as c;"
        "import speculators_patches.checkpointing.writer, speculators_patches.checkpointing.store;"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine that can't pin")
def test_memory_that_cannot_be_pinned_is_ordinary_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    arena = Arena()
    arena._reserve(1000, torch.device("xpu"))
    assert arena._memory.numel() == 1000
    assert "can't be pinned" in caplog.text
    copied = arena.copy_in({"x": torch.arange(3.0)})
    assert copied.tensors()["x"].tolist() == [0.0, 1.0, 2.0]
