# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Spread the temperatures of three requests over their draft tokens."""

import sys

import torch

from vllm.platforms import current_platform

current_platform.import_kernels()
from vllm.utils.cpu_triton_utils import _expand_kernel_impl  # noqa: E402

output = torch.full((5,), 1e30)  # what new_empty may hold
temperatures = torch.tensor([0.7, 0.2, 0.0])
ends = torch.tensor([2, 2, 5], dtype=torch.int32)
_expand_kernel_impl(output, temperatures, ends, 0, 1, 8)
seen = [round(value, 3) for value in output.tolist()]
if seen != [0.7, 0.7, 1.0, 1.0, 1.0]:
    print(f"DEFECT: the sampler divides logits by {seen}")
    sys.exit(1)
print(f"OK: {seen}")
