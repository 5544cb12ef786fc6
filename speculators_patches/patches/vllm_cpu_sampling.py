"""Temperatures, top-k and top-p reach the rejection sampler when vLLM runs on a CPU.

vLLM's CPU stand-in for the Triton kernel that spreads one value per request over that request's
draft tokens converts its output to int64 and fills the copy. The caller's tensor, allocated with
`new_empty`, keeps whatever the memory held; float inputs would be cut to integers besides. Every
speculative method goes through it, `extract_hidden_states` included. Greedy requests never read
the result, so T = 0 looks right.

From 0.31 on, the platform registers the stand-in when the engine starts; applied before that, the
replacement is what gets registered. In 0.28 it is wrapped when its module is imported, which this
patch does not reach: the second target exists only where the registration does.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

_EXPAND = "vllm.utils.cpu_triton_utils:_expand_kernel_impl"

PATCH = Patch(
    name="vllm_cpu_sampling",
    defect=(
        "vLLM on a CPU samples with uninitialised memory as the temperature in every speculative "
        "mode, extract_hidden_states included: garbled, runaway answers at T > 0."
    ),
    needed=SpecifierSet(">=0.31"),
    targets=(
        Target(
            "vllm.utils.cpu_triton_utils",
            "_expand_kernel_impl",
            fingerprints={">=0.28,<0.33": "cb72d4d389c5be6d"},
        ),
        Target(
            "vllm.platforms.cpu",
            "CpuPlatform.register_triton_kernel_overrides",
            fingerprints={">=0.31,<0.33": "500c739cd6609f98"},
            observed=True,
        ),
    ),
    upstream="https://github.com/vllm-project/vllm/issues/55005",
    fixed_in=None,
    remove_when="https://github.com/vllm-project/vllm/pull/55006 (or its successor) is released",
    proof="tests/compat/test_vllm_cpu_sampling.py::test_temperatures_reach_every_draft_token",
    distribution=("vllm-cpu", "vllm"),
    tested=("0.32.0",),
)


def applicable() -> str | None:
    """Why the patch does nothing here, or None. Reads only what is installed; no import of vLLM."""
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        local = Version(importlib.metadata.version("vllm")).local or ""
        if "cpu" not in local:
            return "the installed vLLM is built for a GPU, which runs the Triton kernel itself"
    return None


def expand_kernel_impl(
    output: torch.Tensor,
    input_val: torch.Tensor,
    cu_num_tokens: torch.Tensor,
    replace_from: float,
    replace_to: float,
    MAX_NUM_TOKENS: int | None = None,
) -> None:
    """Writes `input_val[i]` to every token of request i.

    Args:
        output: [num_tokens], any dtype; written in place.
        input_val: [num_requests], same dtype as `output`.
        cu_num_tokens: [num_requests], cumulative number of draft tokens.
        replace_from: a value of `input_val` (0, a greedy request's temperature) ...
        replace_to: ... and what is written in its place.
        MAX_NUM_TOKENS: unused; the Triton kernel's compile-time bound.
    """
    import torch

    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(input_val == replace_from, replace_to, input_val)
    expanded = torch.repeat_interleave(values.to(output.dtype), counts.to(torch.int64))
    output[: expanded.shape[0]].copy_(expanded)


def replacements(originals: Mapping[str, Any]) -> dict[str, Any]:
    """Target path -> replacement."""
    return {_EXPAND: expand_kernel_impl}
