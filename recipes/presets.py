"""Named sets of settings: one a machine, and additions that go with any of them (`h100+ttt4`)."""

from __future__ import annotations

from typing import Any

from recipes.kinds import KINDS

PRESETS = ("miniature", "dgx-spark", "h100")

# What each machine needs different from the published defaults.
VALUES: dict[str, dict[str, Any]] = {
    "dgx-spark": {},  # the published run's machine
    "h100": {"bench_vllm_share": 0.9, "regenerate_concurrency": 256},
    # Sizes from the prototype logged in benchmarks/README.md; body and drafter start are made by
    # the recipe itself and filled in by recipes.miniature.
    "miniature": {
        "body": "",
        "draft_start": "",
        "target_layers": (1, 2, 3),
        "body_layers": 4,
        "seed": 0,
        "prompts": "",
        "samples": 320,
        "regenerate_max_tokens": 96,
        "regenerate_sampling": '{"temperature": 0.0}',
        "regenerate_concurrency": 16,
        "seq_len": 512,
        "epochs": 3,
        "lr": 2e-3,
        "ttt_steps": 4,
        "mask_token_id": 3,  # <unk>, which no text holds
        "num_workers": 0,
        "log_every": 1,
        "dtype": "float32",
        # bfloat16 is emulated on most CPUs: a step took 1.9 s of it, most of that in the backward.
        "hidden_states_dtype": "float32",
        "bench_max_model_len": 256,
        "serve_max_model_len": 256,
        "kv_cache_dtype": "auto",
        "tool_parser": "",
        "serve_port": 0,
        "bench_mtp": "",
        "bench_dflash": "",
        # At 0.7 a body this small can leave its sentence for good: rarely, but its seeds are fixed,
        # and one answer of twelve is too many for the bench.
        "serve_temperature": 0.5,
        "bench_temperatures": (0.0, 0.5),
        "bench_max_tokens": 96,
        "start_timeout": 300.0,
    },
}

# What may be added to a machine's preset with +. Positions behind the trained ones are
# extrapolated: with ttt4 none of the four that are drafted are, with ttt5 one more is trained.
ADDITIONS: dict[str, dict[str, Any]] = {
    "ttt4": {"ttt_steps": 4},
    "ttt5": {"ttt_steps": 5},
    # Other kinds of drafter start fresh: no published one of theirs is known for this body.
    **{kind: {"drafter_kind": kind, "draft_start": ""} for kind in KINDS if kind != "eagle3"},
}


def added(addition: str, machine: str) -> dict[str, Any]:
    """The settings of an addition to a machine's preset."""
    found = ADDITIONS[addition]
    if "draft_start" in found and machine != "miniature":
        return {**found, "draft_vocab_size": 32_000}  # the published EAGLE-3 drafter's
    return found
