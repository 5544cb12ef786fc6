"""fused_loss_compiles: upstream's fused loss under torch.compile, traced on the CPU.

Dynamo reads Triton kernels before any of them runs, so the defect shows without a GPU once torch
believes that Triton can be used. The installed torch may be one without it: then the line of torch
2.9 to 2.11 is put back first.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from speculators_patches.patches import fused_loss_compiles as patch
from tests.compat.running import last_json, python

TRACE = """
import json, sys
import torch
import torch.utils._triton as triton_there
triton_there.has_triton = lambda *a, **k: True
import torch._dynamo.utils as dynamo_utils
dynamo_utils.has_triton = lambda *a, **k: True
from torch._dynamo.source import AttrSource
from torch._dynamo.variables import functions
from torch._dynamo.variables.builder import VariableBuilder
from speculators.losses import resolve_loss_config
from speculators_patches.patches import fused_loss_compiles

def old(self, user_obj, tx, variable, name):
    return VariableBuilder(tx, AttrSource(variable.kernel_source, f"{name}"))._wrap(user_obj)

kind = {"old": old, "patched": fused_loss_compiles.wrap_user_defined_obj}[sys.argv[1]]
functions.DynamoTritonHOPifier.wrap_user_defined_obj = kind
loss = resolve_loss_config("kl_div", "fused")["kl_div"][0]
calls = []

def keep(module, inputs):
    calls.append(sum(node.name.startswith("autograd_function") for node in module.graph.nodes))
    return lambda *inputs: (torch.zeros(()),)

def two_positions(logits, targets):
    return loss(logits, targets).sum() + loss(2 * logits, targets).sum()

try:
    torch.compile(two_positions, backend=keep, fullgraph=True)(
        torch.randn(1, 4, 64, requires_grad=True), torch.randn(1, 4, 64)
    )
    said = ""
except Exception as error:
    said = str(error)
print(json.dumps({"calls": calls, "said": said}))
"""

TILES = """
import json, torch
from speculators.losses import fused
torch.manual_seed(0)
rows, vocabulary = 4, 32000
logits = torch.randn(rows, vocabulary).bfloat16()
targets = (3 * torch.randn(rows, vocabulary)).bfloat16()
found = []
for tile in (1024, 4096, 16384):
    loss, stats = torch.empty(rows), torch.empty(5, rows)
    fused.loss_forward_kernel.fn[(rows,)](
        logits, targets, loss, stats, stats.stride(0), vocabulary, OP=0, BLOCK_SIZE=tile
    )
    found.append(loss)
exact = torch.nn.functional.kl_div(
    logits.double().log_softmax(-1), targets.double().softmax(-1), reduction="none"
).sum(-1)
print(json.dumps({
    "equal": [torch.equal(found[0], other) for other in found],
    "error": max(float((one.double() - exact).abs().max()) for one in found),
}))
"""


@pytest.mark.parametrize("kind", ["old", "patched"])
def test_the_fused_loss_is_traced(kind: str, laid_out: Callable[[str], Path]) -> None:
    """Two positions in one graph: torch 2.11's line ends the trace, the patch's does not."""
    pytest.importorskip("triton")
    laid_out("0.9.0")
    seen = last_json(python("0.9.0", "-c", TRACE, kind))
    if kind == "old":
        assert "already tracked for mutation" in seen["said"]
        assert seen["calls"] == []
    else:
        assert (seen["said"], seen["calls"]) == ("", [2])


def test_the_fused_loss_depends_on_its_tile(laid_out: Callable[[str], Path]) -> None:
    """Why the recipe takes the eager loss: each process times the tiles anew, and bits follow."""
    pytest.importorskip("triton")
    laid_out("0.9.0")
    seen = last_json(python("0.9.0", "-c", TILES, env={"TRITON_INTERPRET": "1"}))
    assert seen["equal"][0]
    assert not all(seen["equal"])
    assert seen["error"] < 1e-4


@pytest.mark.parametrize(
    ("torch", "needed"),
    [("2.9.1", True), ("2.10.0", True), ("2.11.0", True), ("2.12.0", False), ("2.13.0", False)],
)
def test_which_torch_needs_it(torch: str, needed: bool) -> None:
    assert patch.PATCH.needed.contains(torch) is needed
    assert (
        any(
            torch.startswith(known.removeprefix("==").removesuffix("*"))
            for known in patch.PATCH.targets[0].fingerprints
        )
        is needed
    )
