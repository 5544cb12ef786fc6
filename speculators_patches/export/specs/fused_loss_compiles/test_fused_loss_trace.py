"""The fused loss is traced at several positions, under every torch that is allowed.

Dynamo reads Triton kernels before any of them runs, so this needs no GPU once torch
believes that Triton can be used. For "2.11" a newer one gets that version's line back.
"""

import subprocess
import sys

import pytest

pytest.importorskip("triton")

TRACE = """
import sys

import torch
import torch._dynamo.utils
import torch.utils._triton
from packaging import version
from torch._dynamo.source import AttrSource
from torch._dynamo.variables import functions
from torch._dynamo.variables.builder import VariableBuilder

from speculators.losses import resolve_loss_config

torch.utils._triton.has_triton = lambda *args, **kwargs: True
torch._dynamo.utils.has_triton = lambda *args, **kwargs: True


def past_the_look_up(self, user_obj, tx, variable, name):
    source = AttrSource(variable.kernel_source, name)
    return VariableBuilder(tx, source)._wrap(user_obj)


if sys.argv[1] == "2.11" and version.parse(torch.__version__).release >= (2, 12):
    functions.DynamoTritonHOPifier.wrap_user_defined_obj = past_the_look_up
    torch.__version__ = "2.11.0"

import speculators.losses.fused

loss = resolve_loss_config(sys.argv[2], "fused")[sys.argv[2]][0]


def two_positions(logits, targets):
    return loss(logits, targets).sum() + loss(2 * logits, targets).sum()


def keep(module, inputs):
    launches = [n for n in module.graph.nodes if n.name.startswith("autograd_function")]
    print("launches", len(launches))
    return lambda *inputs: (torch.zeros(()),)


compiled = torch.compile(two_positions, backend=keep, fullgraph=True)
compiled(torch.randn(1, 4, 64, requires_grad=True), torch.randn(1, 4, 64))
"""


def trace(torch_version, loss="kl_div"):
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", TRACE, torch_version, loss],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("torch_version", ["2.11", "installed"])
def test_two_positions_are_traced(torch_version):
    said, failed = trace(torch_version)

    assert said.splitlines() == ["launches 2"], failed[-2000:]
