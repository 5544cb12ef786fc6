"""quick_draft_masks: the same mask as upstream's, in a fraction of the operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat.running import last_json, python

PROGRAM = """
import json
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from speculators.models.eagle3 import attention, core
from torch.nn.attention.flex_attention import create_block_mask
from torch.profiler import profile
import speculators_patches

# In a tuple: what this module names by itself is replaced with the rest.
upstream = (attention.extend_mask_for_draft_tokens,)
speculators_patches.apply(only=["quick_draft_masks"])
ours = attention.extend_mask_for_draft_tokens
assert ours is not upstream[0] and core.extend_mask_for_draft_tokens is ours
HALVES = ("kv", "full_kv", "q", "full_q")
ARRAYS = [half + kind for half in HALVES for kind in ("_num_blocks", "_indices")]

def mask(documents, window):
    length = len(documents)
    return create_block_mask(
        attention.create_combined_mask_mod(torch.tensor(documents), length, window),
        None, None, length, length, device="cpu",
    )

@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(-1, 3), st.integers(1, 300)), min_size=1, max_size=6),
    st.sampled_from([None, 64, 200]), st.integers(1, 5),
)
def the_same(runs, window, positions):
    documents = [number for number, count in runs for _ in range(count)]
    documents += [-1] * (-len(documents) % 128)
    one = other = mask(documents, window)
    for _ in range(positions):
        one, other = upstream[0](one), ours(other)
        for name in ARRAYS:
            a, b = getattr(one, name), getattr(other, name)
            assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride(), name
        assert (one.seq_lengths, one.BLOCK_SIZE) == (other.seq_lengths, other.BLOCK_SIZE)
        assert one.mask_mod is other.mask_mod

the_same()
start = mask([0] * 512 + [1] * 512, None)
counts = []
for extend in (upstream[0], ours):
    extend(start)
    with profile() as seen:
        extend(start)
    counts.append(sum(event.count for event in seen.key_averages()))
speculators_patches.revert()
reverted = core.extend_mask_for_draft_tokens is upstream[0]
print(json.dumps({"operations": counts, "reverted": reverted}))
"""


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_a_mask_is_extended_in_few_operations(
    version: str, laid_out: Callable[[str], Path]
) -> None:
    """Every array equals upstream's over any documents, windows and positions."""
    laid_out(version)
    seen = last_json(python(version, "-c", PROGRAM))
    before, after = seen["operations"]
    assert before > 200
    assert after < 90
    assert seen["reverted"]
