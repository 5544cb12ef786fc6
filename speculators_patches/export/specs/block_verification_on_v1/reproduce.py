# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Ask Model Runner V1 for block verification, and look at the sampler that it makes."""

import os
import sys

os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"

import torch  # noqa: E402

from vllm.config import SpeculativeConfig, VllmConfig  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402

current_platform.import_kernels()
from vllm.v1.sample.rejection_sampler import RejectionSampler  # noqa: E402
from vllm.v1.sample.sampler import Sampler  # noqa: E402


def settings(method):
    """What V1's rejection sampler takes from a config that was accepted."""
    asked = SpeculativeConfig(
        method="ngram",
        prompt_lookup_max=2,
        num_speculative_tokens=2,
        rejection_sample_method=method,
    )
    config = VllmConfig(speculative_config=asked).speculative_config
    sampler = RejectionSampler(Sampler(), config, torch.device("cpu"))
    return {name: it for name, it in vars(sampler).items() if name[0] != "_"}


standard = settings("standard")
try:
    block = settings("block")
except ValueError as error:
    if "Model Runner V1 does not support" not in str(error):
        raise
    said = next(line for line in str(error).splitlines() if "Model Runner V1" in line)
    print(f"OK: {said.partition('Value error, ')[2].partition(' [type=')[0]}")
    sys.exit(0)
if block == standard:
    print("DEFECT: 'block' is accepted, and makes the sampler that 'standard' makes")
    sys.exit(1)
print("OK: 'block' makes a sampler of its own")
