"""Which vLLM server each stage needs: pure functions of the settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes import kinds
from recipes.config import ConfigError, Recipe
from recipes.config_checks import requests_of
from recipes.kinds import DrafterKind
from recipes.vllm.mooncake import Store
from recipes.vllm_server import ServerSpec

_LEAST_AT_ONCE = 64


def body_layers(recipe: Recipe) -> int:
    """The body's number of layers, which is also the id of its last hidden state."""
    config = Path(recipe.body) / "config.json"
    if not config.is_file():
        return recipe.body_layers
    try:
        data = json.loads(config.read_text("utf-8"))
        return int(data.get("text_config", data)["num_hidden_layers"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{config} does not say the body's num_hidden_layers, so it is no model's "
            "configuration; check the setting body."
        ) from None


def plain_server(recipe: Recipe, name: str = "body") -> ServerSpec:
    """The body alone: answers prompts, and is the bench's arm without speculation."""
    return ServerSpec(
        name=name,
        model=recipe.body,
        max_model_len=recipe.bench_max_model_len,
        dtype=recipe.dtype,
        gpu_memory_utilization=recipe.bench_vllm_share,
        extra_args=serving_flags(recipe),
    )


def extraction_server(recipe: Recipe, folder: Path, name: str = "extraction") -> ServerSpec:
    """The body as a producer of hidden states, as files in `folder` or in the recipe's store."""
    store = store_of(recipe)
    return ServerSpec(
        name=name,
        model=recipe.body,
        extraction_layers=(*recipe.target_layers, body_layers(recipe)),
        extraction_folder=None if store else folder,
        extraction_store=store,
        max_model_len=recipe.train_max_model_len or recipe.seq_len + 1,
        dtype=recipe.dtype,
        gpu_memory_utilization=recipe.train_vllm_share,
        max_num_seqs=extracted_at_once(recipe),
        extra_args=recipe.vllm_extra,
    )


def extracted_at_once(recipe: Recipe) -> int:
    """How many requests an extraction server computes together; vLLM queues any beyond.

    Each DataLoader worker asks for one row, training's and validation's; beforehand it is 8 a
    server, and more come only where servers fail. vLLM's default on a large GPU is 1024, and it
    tries at its start whether so many answers' logits over the whole vocabulary fit beside the
    body: at Gemma 4's 262,144 tokens that is 1.1 GB for each of the sampler's copies. With 0.4 of
    an H100 it then does not start (benchmarks/README.md, vLLM 0.26).
    """
    return max(_LEAST_AT_ONCE, 2 * requests_of(recipe) * recipe.trainers)


def store_of(recipe: Recipe) -> Store | None:
    """Where hidden states are kept; None: in files. The leading machine has the master."""
    host = recipe.hosts[0] if recipe.hosts else "127.0.0.1"
    if recipe.transfer == "file":
        return None
    return Store(
        master=recipe.mooncake_master or f"{host}:{recipe.mooncake_port}",
        segment_gib=recipe.mooncake_segment_gib,
        room_s=recipe.producer_wait_minutes * 60,
        unread_s=recipe.request_timeout,
    )


def alike(spec: ServerSpec, count: int, gpus: Sequence[str] = ()) -> list[ServerSpec]:
    """`count` servers like `spec`, the first of them under its name.

    Args:
        gpus: for each server, as CUDA_VISIBLE_DEVICES names it; empty: none, or not known.

    Raises:
        ConfigError: more servers than GPUs.
    """
    if count == 1:
        return [spec]
    if 0 < len(gpus) < count:
        raise ConfigError(
            f"producers={count} need a GPU each, and this machine has {len(gpus)}: lower producers."
        )
    return [
        dataclasses.replace(
            spec,
            name=spec.name if number == 0 else f"{spec.name}-{number + 1}",
            env={**spec.env} | ({"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {}),
        )
        for number in range(count)
    ]


def drafting(
    drafter: Path, n: int, method: str = "greedy", kind: DrafterKind = "eagle3"
) -> dict[str, Any]:
    """vLLM's speculative config for a drafter; greedy, vLLM's default, is left unsaid."""
    config: dict[str, Any] = {**kinds.served(kind), "model": str(drafter)}
    if method != "greedy":
        config["draft_sample_method"] = method
    return {**config, "num_speculative_tokens": n}


def production_server(recipe: Recipe, drafter: Path, method: str = "greedy") -> ServerSpec:
    """The published production command, with this run's drafter.

    Args:
        method: draft_sample_method; what `auto` means is `recipes.drafting_choice`'s.
    """
    tools = (
        ("--enable-auto-tool-choice", "--tool-call-parser", recipe.tool_parser)
        if recipe.tool_parser
        else ()
    )
    return ServerSpec(
        name="serve",
        model=recipe.body,
        port=recipe.serve_port,
        speculative_config=drafting(
            drafter, recipe.num_speculative_tokens, method, recipe.drafter_kind
        ),
        max_model_len=recipe.serve_max_model_len,
        dtype=recipe.dtype,
        gpu_memory_utilization=recipe.serve_vllm_share,
        extra_args=(*serving_flags(recipe), *tools),
    )


def serving_flags(recipe: Recipe) -> tuple[str, ...]:
    flags = ["--kv-cache-dtype", recipe.kv_cache_dtype]
    if recipe.prefix_caching:
        flags.append("--enable-prefix-caching")
    if recipe.thinking is not None:
        template = {"enable_thinking": recipe.thinking}
        flags += ["--default-chat-template-kwargs", json.dumps(template)]
    return (*flags, *recipe.vllm_extra)
