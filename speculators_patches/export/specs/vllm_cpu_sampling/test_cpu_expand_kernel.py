# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""The CPU stand-in for expand_kernel writes to its caller's tensor."""

import pytest
import torch

from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("only the CPU backend uses it", allow_module_level=True)

current_platform.import_kernels()

from vllm.utils import cpu_triton_utils  # noqa: E402

GARBAGE = 1e9


def expand(values, counts, replace_from=0, replace_to=1):
    ends = torch.tensor(counts, dtype=torch.int32).cumsum(0).to(torch.int32)
    output = torch.full((sum(counts),), GARBAGE).to(values.dtype)
    cpu_triton_utils._expand_kernel_impl(
        output, values, ends, replace_from, replace_to, MAX_NUM_TOKENS=8
    )
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int64])
@pytest.mark.parametrize(
    "counts", [[2, 0, 3], [1, 1, 1], [0, 0, 4], [5, 0, 0], [0, 0, 0]]
)
def test_each_value_is_repeated(dtype, counts):
    values = torch.tensor([5, 0, 7], dtype=dtype)

    output = expand(values, counts)

    expected = [5] * counts[0] + [1] * counts[1] + [7] * counts[2]
    assert output.dtype == dtype
    assert output.tolist() == expected


def test_fractions_survive():
    output = expand(torch.tensor([0.7, 0.25]), [2, 1])

    torch.testing.assert_close(output, torch.tensor([0.7, 0.7, 0.25]))


def test_nothing_behind_the_last_token_is_written():
    output = torch.full((6,), GARBAGE)
    ends = torch.tensor([2, 3], dtype=torch.int32)

    cpu_triton_utils._expand_kernel_impl(
        output, torch.tensor([0.5, 2.0]), ends, 0, 1, MAX_NUM_TOKENS=8
    )

    assert output.tolist() == [0.5, 0.5, 2.0, GARBAGE, GARBAGE, GARBAGE]
