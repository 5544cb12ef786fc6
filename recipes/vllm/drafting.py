"""How drafts are drawn and judged: what vLLM would silently do otherwise than it was told.

vLLM 0.26 to 0.32 have two model runners. V1 looks at neither `rejection_sample_method: block` in
its rejection sampler nor, with any method but the standard one, at `draft_sample_method`
(v1/spec_decode/llm_base_proposer.py keeps the draft's distribution only then): such a server
starts, says nothing, and verifies greedy drafts the standard way. V2 does as it is told. V1 is used

- on a CPU, and with VLLM_USE_V2_MODEL_RUNNER=0;
- before 0.29 for a body with experts that is not on a short list (Gemma 4 26B-A4B is not), without
  a word in the log;
- where V2 lacks something (P-EAGLE), which the log says.

So on a GPU a server that asks for such a thing counts only when its log says that it uses V2. On a
CPU, where `cpu_entry` starts the servers, the patch block_verification_on_v1 makes V1 verify
blocks; vLLM itself ends there when drafts are to be accepted at random (synthetic). And no runner
has a distribution of what a method like n-gram lookup proposes.
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
# What vLLM's log says of the runner it took.
USES_V2 = "Using V2 Model Runner"
FELL_BACK = "using the V1 model runner instead"
# Methods whose drafts are drawn from no distribution: looked up, or always the best ones.
_WITHOUT_DISTRIBUTION = ("ngram", "ngram_gpu", "suffix", "medusa", "mlp_speculator")
# vLLM's flags that hold such a config, or put something into it.
_CONFIG_FLAGS = ("--speculative-config", "-sc", "--spec-method", "--spec-model", "--spec-tokens")


def ignored(config: Mapping[str, Any] | None, *, cpu: bool, env: Mapping[str, str]) -> str | None:
    """What vLLM would ignore in a speculative config, as a sentence; None if nothing is known.

    Args:
        cpu: the vLLM is built for CPUs.
        env: the server's environment beyond this process's.
    """
    method = _method(config)
    if method in _WITHOUT_DISTRIBUTION and _asks_for_drawing(config):
        return (
            f"draft_sample_method=probabilistic has no effect with method={method}, whose drafts "
            "are drawn from no distribution; vLLM would say nothing. Leave draft_sample_method out."
        )
    chosen = {**os.environ, **env}.get("VLLM_USE_V2_MODEL_RUNNER", "").lower()
    if cpu or chosen not in _FALSE:
        return None
    return on_v1(config, "VLLM_USE_V2_MODEL_RUNNER=0")


def not_on_v2(config: Mapping[str, Any] | None, log: str) -> str | None:
    """The same on a GPU, for a server that has started, from its log.

    vLLM says which before it loads weights, at its level INFO.
    """
    if USES_V2 in log:
        return None
    why = "its log says why it took it"
    if FELL_BACK not in log:
        why = (
            f"its log does not say {USES_V2!r}; vLLM before 0.29 takes V1 for this body unless "
            "VLLM_USE_V2_MODEL_RUNNER=1 is set for all servers, and a VLLM_LOGGING_LEVEL above "
            "INFO hides the line"
        )
    return on_v1(config, why)


def said_elsewhere(extra: Sequence[str]) -> str | None:
    """A speculative config among a server's other flags, where nothing above would see it."""
    for word in extra:
        name = word.partition("=")[0].partition(".")[0].replace("_", "-")
        if name in _CONFIG_FLAGS:
            return (
                f"its flags hold {word.partition('=')[0]}, so that what vLLM would ignore in it is "
                "not seen, and every server would draft; name it as the arm's speculative config, "
                "or by num_speculative_tokens and draft_sample_method."
            )
    return None


def _method(config: Mapping[str, Any] | None) -> object:
    """As vLLM reads it: n-gram lookup may be named as the model."""
    found = (config or {}).get("method") or (config or {}).get("model")
    return "ngram" if found == "[ngram]" else found


def _synthetic(config: Mapping[str, Any] | None) -> bool:
    return (config or {}).get("rejection_sample_method") == "synthetic"


def _asks_for_drawing(config: Mapping[str, Any] | None) -> bool:
    return (config or {}).get("draft_sample_method") == "probabilistic"


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
    method = (config or {}).get("rejection_sample_method", "standard")
    if _synthetic(config) and _asks_for_drawing(config):
        return (
            "draft_sample_method=probabilistic has no effect here with rejection_sample_method="
            f"synthetic: vLLM's V1 model runner ({why}) would say nothing, but drafts greedily. "
            "Leave one of them out."
        )
    if method != "block":
        return None
    lost = "verifies token by token (the standard method)"
    if _asks_for_drawing(config):
        lost += " and drafts greedily"
    return (
        f"rejection_sample_method=block has no effect here: vLLM's V1 model runner ({why}) would "
        f"say nothing, but {lost}. Leave rejection_sample_method out; probabilistic drafts work "
        "with the standard method."
    )
