"""vllm_cpu_sampling: temperatures reach the sampler when vLLM runs on a CPU."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speculators_patches.patches import vllm_cpu_sampling
from speculators_patches.patches.vllm_cpu_sampling import expand_kernel_impl

ROOT = Path(__file__).resolve().parents[2]


def on_cpu_build() -> bool:
    try:
        return bool(importlib.metadata.version("vllm-cpu"))
    except importlib.metadata.PackageNotFoundError:
        return False


needs_cpu_build = pytest.mark.skipif(not on_cpu_build(), reason="vllm-cpu is not installed")

GARBAGE = 1e30
COUNTS = torch.tensor([2, 0, 3], dtype=torch.int32)
CUMULATIVE = COUNTS.cumsum(0).to(torch.int32)


def expanded(function: object, values: torch.Tensor, replace_to: float = 1) -> torch.Tensor:
    output = torch.full((int(CUMULATIVE[-1]),), GARBAGE).to(values.dtype)
    function(output, values, CUMULATIVE, 0, replace_to, MAX_NUM_TOKENS=8)  # type: ignore[operator]
    return output


# Upstream's own rejection sampler, asked for one temperature a draft token, in a process of its
# own: vLLM registers its kernels once and for good.
PROGRAM = """
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
import vllm.v1.sample.rejection_sampler as sampler
current_platform.register_triton_kernel_overrides()
out = torch.full((5,), 1e30)
temperatures, ends = torch.tensor([0.7, 0.2, 0.0]), torch.tensor([2, 2, 5], dtype=torch.int32)
sampler.expand_kernel[(3,)](out, temperatures, ends, 0, 1, 8)
print([round(value, 3) for value in out.tolist()])
"""
APPLY = "import speculators_patches; speculators_patches.apply(only=['vllm_cpu_sampling'])\n"


@needs_cpu_build
@pytest.mark.parametrize(
    ("prefix", "seen"),
    [("", [1.0000000150474662e30] * 5), (APPLY, [0.7, 0.7, 1.0, 1.0, 1.0])],
    ids=["unpatched", "patched"],
)
def test_temperatures_reach_every_draft_token(prefix: str, seen: list[float]) -> None:
    """Unpatched the caller's tensor keeps its garbage; patched it holds the temperatures."""
    ran = subprocess.run(
        [sys.executable, "-c", prefix + PROGRAM], capture_output=True, text=True, timeout=300,
        check=False, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == pytest.approx(seen)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_top_k_keeps_its_dtype(dtype: torch.dtype) -> None:
    output = expanded(expand_kernel_impl, torch.tensor([5, 6, 7], dtype=dtype))
    assert output.dtype == dtype
    assert output.tolist() == [5, 5, 7, 7, 7]


def test_only_the_value_named_is_replaced() -> None:
    assert expanded(expand_kernel_impl, torch.tensor([0.0, 1.0, 0.5]), 9).tolist() == [
        9.0, 9.0, 0.5, 0.5, 0.5,
    ]  # fmt: skip


def test_on_a_gpu_build_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "vllm":
            return "0.32.0"
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "GPU" in (vllm_cpu_sampling.applicable() or "")
