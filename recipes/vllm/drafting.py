"""How drafts are drawn and judged: what vLLM would silently do otherwise than it was told.

vLLM 0.32 has two model runners. V1 looks at neither `rejection_sample_method: block` in its
rejection sampler nor, once that is set, at `draft_sample_method` (v1/spec_decode/
llm_base_proposer.py keeps the draft's distribution only with the standard method): such a server
starts, says nothing, and verifies greedy drafts the standard way. V2 does as it is told. V1 is used
on a CPU, with VLLM_USE_V2_MODEL_RUNNER=0, and where V2 lacks something (its log says what).

On a CPU, where `cpu_entry` starts the servers, the patch block_verification_on_v1 makes V1 do as it
is told; elsewhere the setting is refused where V1 is known to be used.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

DraftSampleMethod = Literal["greedy", "probabilistic"]
_FALSE = {"0", "false", "no"}
BLOCK_PATCH = "block_verification_on_v1"
# What vLLM's log says when it falls back.
FELL_BACK = "using the V1 model runner instead"


def ignored(config: Mapping[str, Any] | None, *, cpu: bool, env: Mapping[str, str]) -> str | None:
    """What vLLM would ignore in a speculative config, as a sentence; None if nothing is known.

    Args:
        cpu: the vLLM is built for CPUs.
        env: the server's environment beyond this process's.
    """
    chosen = {**os.environ, **env}.get("VLLM_USE_V2_MODEL_RUNNER", "").lower()
    if cpu or chosen not in _FALSE:
        return None
    return on_v1(config, "VLLM_USE_V2_MODEL_RUNNER=0")


def block_config(arguments: Sequence[str]) -> dict[str, Any] | None:
    """The speculative config among a vLLM server's arguments, if it asks for block verification."""
    for name, value in itertools.pairwise(arguments):
        if name == "--speculative-config":
            config: dict[str, Any] = json.loads(value)
            if config.get("rejection_sample_method") == "block":
                return config
    return None


def verify_blocks() -> bool:
    """Patches the V1 runner of this process; False where the patch is not made for this vLLM.

    Raises:
        PatchRefused: vLLM's source is not the one that it was written for.
    """
    import speculators_patches

    return speculators_patches.apply(only=[BLOCK_PATCH]).row(BLOCK_PATCH).active


def on_v1(config: Mapping[str, Any] | None, why: str) -> str | None:
    """The same where the V1 runner is known to be used, for the reason `why`."""
    if not config or config.get("rejection_sample_method") != "block":
        return None
    lost = "verifies token by token (the standard method)"
    if config.get("draft_sample_method") == "probabilistic":
        lost += " and drafts greedily"
    return (
        f"rejection_sample_method=block has no effect here: vLLM's V1 model runner ({why}) would "
        f"say nothing, but {lost}. Leave rejection_sample_method out; probabilistic drafts work "
        "with the standard method."
    )
