"""accuracy_without_waiting: upstream's counts without a result whose size the host must ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat.running import last_json, python

PROGRAM = """
import json
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from speculators.models import metrics
import speculators_patches

# In a tuple: what this module names by itself is replaced with the rest.
upstream = (metrics.compute_accuracy_single_step,)
speculators_patches.apply(only=["accuracy_without_waiting"])
from speculators.models.eagle3 import metrics as used
ours = used.compute_accuracy_single_step
assert ours is metrics.compute_accuracy_single_step and ours is not upstream[0]

# A busy machine decides nothing.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.integers(1, 12), st.booleans(), st.booleans())
def the_same(data, length, masked, chained):
    def drawn(kind):
        return torch.tensor([data.draw(st.lists(kind, min_size=length, max_size=length))])
    said, wanted = drawn(st.integers(0, 2)), drawn(st.integers(0, 2))
    mask = drawn(st.booleans()) if masked else None
    before = drawn(st.booleans()) if chained else None
    results = []
    for count in (upstream[0], ours):
        standing = None if before is None else before.clone()
        results.append([*count(said, wanted, mask, standing), standing])
    for one, other in zip(*results):
        assert (one is None) == (other is None)
        assert one is None or (torch.equal(one, other) and one.dtype == other.dtype)

the_same()

def graphs(count):
    seen = []
    def keep(module, inputs):
        seen.append(module)
        return module.forward
    torch._dynamo.reset()
    compiled = torch.compile(lambda *a: [x + 1 for x in count(*a)], backend=keep)
    ids = torch.arange(8)[None]
    compiled(ids, ids, ids > 3, torch.ones_like(ids, dtype=torch.bool))
    return len(seen)

print(json.dumps({"graphs": [graphs(upstream[0]), graphs(ours)]}))
"""


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_counting_does_not_cut_the_graph(version: str, laid_out: Callable[[str], Path]) -> None:
    """Same numbers for any ids, masks and drafts so far; upstream's is cut where it waits."""
    laid_out(version)
    before, after = last_json(python(version, "-c", PROGRAM))["graphs"]
    assert before > 1
    assert after == 1
