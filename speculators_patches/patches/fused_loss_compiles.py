"""Upstream's default loss, the fused one, compiles under torch 2.9 to 2.11.

Its two Triton kernels share one list of tile sizes and prune it by a callback. Under
`torch.compile` torch reads that list once per launch and registers it for mutation each time, past
its own look-up of objects already registered; the second launch of a trace (the backward of the
first position is enough) ends training with "ListVariable(length=21) is already tracked for
mutation". torch 2.12 goes through the look-up (pytorch #177874); this does the same in older ones,
for every Triton kernel with `prune_configs_by`. speculators asks for torch >= 2.9.

Numbers are those of the fused loss under torch 2.12 and later: the kernels are untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_MODULE = "torch._dynamo.variables.functions"
_WRAP = f"{_MODULE}:DynamoTritonHOPifier.wrap_user_defined_obj"

PATCH = Patch(
    name="fused_loss_compiles",
    defect="The default fused loss ends training at its first step under torch 2.9 to 2.11 "
    '(dynamo: "already tracked for mutation").',
    needed=SpecifierSet(">=2.9,<2.12"),
    targets=(
        Target(
            _MODULE,
            "DynamoTritonHOPifier.wrap_user_defined_obj",
            fingerprints={
                "==2.9.*": "757df26e51576fa1",
                "==2.10.*": "db528c28a754e2fd",
                "==2.11.*": "76993443c70d4f86",
            },
        ),
    ),
    upstream="https://github.com/pytorch/pytorch/pull/177874",
    fixed_in="2.12.0",
    remove_when="speculators asks for torch >= 2.12",
    proof="tests/compat/test_fused_loss_compiles.py::test_the_fused_loss_is_traced",
    distribution=("torch",),
    tested=("2.11.0", "2.13.0"),
    used_by="speculators",
)


def wrap_user_defined_obj(self: Any, user_obj: Any, tx: Any, variable: Any, name: str) -> Any:
    """Dynamo's variable for attribute `name` of a Triton autotuner, the tracked one if any.

    Args:
        self: the DynamoTritonHOPifier.
        user_obj: the attribute's value.
        tx: the trace in hand.
        variable: the kernel's variable.
    """
    from torch._dynamo.source import AttrSource
    from torch._dynamo.variables.builder import VariableBuilder

    assert tx is not None
    return VariableBuilder(tx, AttrSource(variable.kernel_source, name))(user_obj)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    return {_WRAP: wrap_user_defined_obj}
