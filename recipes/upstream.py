"""The only place that knows upstream's entrypoints: which exist in which version, and their flags.

Every function returns an argv that runs upstream's own code with the overlay's patches active.
Entrypoints that can be imported exist since speculators 0.8 (`speculators.cli`,
`speculators.train.cli`); before that they were scripts in the git repository.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

from recipes import kinds
from recipes.config import Recipe
from recipes.spread import torchrun
from recipes.vllm.mooncake import Store

FIRST_WITH_ENTRYPOINTS = Version("0.8.0")
FIRST_THAT_SKIPS_FREQUENCIES = Version("0.9.0")


class UpstreamError(RuntimeError):
    """The installed upstream cannot run the recipe; the message says what to install."""


def installed(distribution: str) -> Version | None:
    """Version of an installed distribution, without importing it."""
    try:
        return Version(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return None


def require_entrypoints() -> Version:
    """The installed speculators version, if the recipe's stages can call it.

    Raises:
        UpstreamError: speculators is missing or older than 0.8.
    """
    version = installed("speculators")
    if version is None:
        raise UpstreamError("speculators is not installed: pip install 'speculators==0.9.0'.")
    if version < FIRST_WITH_ENTRYPOINTS:
        raise UpstreamError(
            f"speculators {version} has no importable entrypoints: the recipe needs 0.8 or newer "
            "(pip install 'speculators==0.9.0'). The patches still work with its git scripts: "
            "python -m speculators_patches run path/to/scripts/train.py -- ARGS."
        )
    return version


def _patched(module: str, arguments: Sequence[str]) -> list[str]:
    return [
        sys.executable, "-m", "speculators_patches", "run", "--module", module, "--", *arguments,
    ]  # fmt: skip


def loss_implementation(recipe: Recipe, accelerator: bool) -> tuple[str, str]:
    """The loss kernel to ask for, and why.

    The fused loss needs an accelerator. Its tile is chosen by timing wherever the compiler's cache
    is empty, and its sums depend on the tile (tests/compat/test_fused_loss_compiles.py): a run that
    is resumed after a reboot or elsewhere need not be bitwise the same. The eager one takes at most
    7 % longer a step (benchmarks/README.md).
    """
    if recipe.loss_implementation != "auto":
        return recipe.loss_implementation, "as set"
    if not accelerator:
        return "eager", "no accelerator: the fused loss needs one"
    return "eager", "the fused loss picks its tile, and so the order of its sums, by timing"


def has_accelerator() -> bool:
    """Whether a GPU driver is present; does not import torch, so that `plan` stays quick."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def gpus() -> tuple[str, ...]:
    """This machine's NVIDIA GPUs as CUDA_VISIBLE_DEVICES names them, and within what it allows."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if shown is None or not found:
        return tuple(map(str, range(found)))
    return tuple(one.strip() for one in shown.split(",") if one.strip())


def regenerate(recipe: Recipe, *, endpoints: Sequence[str], outfile: Path, limit: int) -> list[str]:
    """argv: the body answers `limit` more prompts, appended with token ids and masks to `outfile`.

    Always resumes: upstream skips the conversations already in `outfile`. Several endpoints share
    the work; that, and what `regenerate_environment` sets, is the patch durable_responses'.
    """
    sampling = json.loads(recipe.regenerate_sampling)
    if recipe.thinking is not None:
        sampling["chat_template_kwargs"] = {"enable_thinking": recipe.thinking}
    return _patched(
        "speculators",
        [
            "regenerate-responses",
            "--endpoint", ",".join(f"{url}/v1/chat/completions" for url in endpoints),
            "--dataset", recipe.prompts,
            "--limit", str(limit),
            "--concurrency", str(recipe.regenerate_concurrency),
            "--max-tokens", str(recipe.regenerate_max_tokens),
            "--sampling-params", json.dumps(sampling),
            "--outfile", str(outfile),
            "--resume",
        ],
    )  # fmt: skip


def regenerate_environment(recipe: Recipe) -> dict[str, str]:
    """What the patch durable_responses reads from the environment."""
    prefix = "SPECULATORS_PATCHES_"
    settings = {
        "ERROR_SHARE": recipe.regenerate_error_share,
        "CONNECT_TIMEOUT_S": recipe.regenerate_connect_timeout,
        "READ_TIMEOUT_S": recipe.regenerate_read_timeout,
        "SERVER_WAIT_S": recipe.regenerate_server_wait,
        "SYSTEM_PROMPT": recipe.regenerate_system_prompt,
    }
    return {prefix + name: str(value) for name, value in settings.items() if value != ""}


def prepare(recipe: Recipe, *, responses: Path, output: Path) -> list[str]:
    """argv: rows with token ids -> an Arrow data set and token frequencies.

    The frequencies are asked for: since 0.9 upstream skips them unless told otherwise, and then
    ignores --draft-vocab-size in training; 0.8 always makes them and does not know the flag. No
    --render-endpoint: the rows carry their token ids.
    """
    arguments = [
        "prepare-data",
        "--model", recipe.body,
        "--data", str(responses),
        "--output", str(output),
        "--seq-length", str(recipe.seq_len),
        "--seed", str(recipe.seed),
        "--num-preprocessing-workers", "1" if recipe.samples <= 2000 else "8",
    ]  # fmt: skip
    version = installed("speculators")
    if version is None or version >= FIRST_THAT_SKIPS_FREQUENCIES:
        arguments.append("--no-skip-token-freq")
    if recipe.minimum_valid_tokens is not None:
        arguments += ["--minimum-valid-tokens", str(recipe.minimum_valid_tokens)]
    return _patched("speculators", arguments)


def extract_offline(recipe: Recipe, *, endpoint: str, data: Path, output: Path) -> list[str]:
    """argv: every row's hidden states into files, so that training needs no vLLM beside it.

    Each file is checked by the patch durable_extraction before it gets its name in `output`; the
    patch also shares the rows between several servers.

    Args:
        endpoint: one URL, or several, separated by commas.
    """
    urls = endpoint.split(",")
    return _patched(
        "speculators",
        [
            "generate-offline-data",
            "--preprocessed-data", str(data),
            "--endpoint", ",".join(f"{url}/v1" for url in urls),
            "--model", recipe.body,
            "--output", str(output),
            "--concurrency", str(8 * len(urls)),
            "--request-timeout", str(recipe.request_timeout),
            "--max-retries", str(recipe.max_retries),
        ],
    )  # fmt: skip


# The share of rows without hidden states that is tolerated, as in training.
LOST_SHARE = 0.02


def extraction_environment(recipe: Recipe) -> dict[str, str]:
    """What the patch durable_extraction reads from the environment."""
    return {
        "SPECULATORS_PATCHES_PRODUCER_WAIT_MINUTES": str(recipe.producer_wait_minutes),
        "SPECULATORS_PATCHES_MAX_LOST_SHARE": str(LOST_SHARE),
    }


def train(
    recipe: Recipe,
    *,
    data: Path,
    output: Path,
    logs: Path,
    endpoint: str | None,
    cached: Path | None = None,
    incomplete: bool = False,
    accelerator: bool | None = None,
    store: Store | None = None,
    number: int = 0,
) -> list[str]:
    """argv: upstream's trainer, with torchrun around it if there are several.

    `endpoint` is None when the hidden states are in `cached`; `incomplete` says that some rows have
    none there, which are then left out. Several endpoints are separated by commas: the patch
    several_producers asks them all. `store` is where they put hidden states; None: into files.

    `accelerator` says whether the trainer will have one; None looks (`plan` may know better).
    `number` is the machine's place in `hosts`.

    A started drafter brings its own draft vocabulary. Asking upstream for --draft-vocab-size as
    well would build another mapping from the new data and lay it over the old output head, row
    by row wrong; so the flag is passed for fresh drafters only.
    """
    accelerator = has_accelerator() if accelerator is None else accelerator
    arguments = [
        "--speculator-type", recipe.drafter_kind,
        "--verifier-name-or-path", recipe.body,
        "--data-path", str(data),
        "--save-path", str(output),
        "--log-dir", str(logs),
        "--total-seq-len", str(recipe.seq_len),
        "--train-data-ratio", str(recipe.train_share),
        "--epochs", str(recipe.epochs),
        "--optimizer", recipe.optimizer,
        "--lr", str(recipe.lr),
        "--scheduler-type", recipe.scheduler,
        *kinds.training_flags(recipe),
        "--seed", str(recipe.seed),
        "--hidden-states-dtype", recipe.hidden_states_dtype,
        "--loss-implementation", loss_implementation(recipe, accelerator)[0],
        "--log-freq", str(recipe.log_every),
    ]  # fmt: skip
    if recipe.deterministic:  # whole with the patch deterministic_cuda
        arguments += ["--deterministic-cuda"]
    if recipe.optimizer == "muon":
        arguments += ["--muon-lr", str(recipe.lr)]
    if not accelerator:
        arguments += ["--draft-attn-impl", "sdpa"]
    if recipe.draft_start:
        arguments += ["--from-pretrained", recipe.draft_start]
    else:
        arguments += ["--target-layer-ids", *map(str, recipe.target_layers)]
        if recipe.draft_vocab_size is not None:
            arguments += ["--draft-vocab-size", str(recipe.draft_vocab_size)]
    if endpoint is None:
        arguments += ["--on-missing", "warn" if incomplete else "raise"]
        if cached is not None:
            arguments += ["--hidden-states-path", str(cached)]
    else:
        arguments += [
            "--on-missing", "generate",
            "--vllm-endpoint", ",".join(f"{url}/v1" for url in endpoint.split(",")),
            "--request-timeout", str(recipe.request_timeout),
            "--max-retries", str(recipe.max_retries),
            # Of the patch wait_for_producer.
            "--producer-wait-minutes", str(recipe.producer_wait_minutes),
            *(store.trainer_flags() if store else ()),
        ]  # fmt: skip
    # Of the patch step_checkpoints, which takes them out before upstream parses.
    arguments += [
        "--checkpoint-every-minutes", str(recipe.checkpoint_every_minutes),
        "--checkpoint-keep", str(recipe.checkpoint_keep),
        "--best-by", recipe.best_by,
    ]  # fmt: skip
    if recipe.checkpoint_every_steps is not None:
        arguments += ["--checkpoint-every-steps", str(recipe.checkpoint_every_steps)]
    if recipe.checkpoint_keep_every is not None:
        arguments += ["--checkpoint-keep-every", str(recipe.checkpoint_keep_every)]
    if recipe.num_workers is not None:
        arguments += ["--num-workers", str(recipe.num_workers)]
    if recipe.fsdp:
        arguments += ["--fsdp-shard"]
    command = _patched("speculators.train", [*arguments, *recipe.train_extra])
    return torchrun.wrapped(recipe, command, number)


def train_environment(recipe: Recipe, number: int = 0) -> dict[str, str]:
    """Variables for `train`'s command on machine `number`: torchrun's, and what patches read."""
    return torchrun.environment(recipe, number) | patches_environment(recipe)


def patches_environment(recipe: Recipe) -> dict[str, str]:
    """What the patch expected_acceptance reads, on every machine."""
    return {"SPECULATORS_PATCHES_SERVE_TEMPERATURE": str(recipe.serve_temperature)}


def newest_drafter(checkpoints: Path) -> Path:
    """The folder vLLM can load: `checkpoint_best` if upstream made one, else the last epoch's.

    Raises:
        FileNotFoundError: there is no finished epoch.
    """
    best = checkpoints / "checkpoint_best"
    if (best / "model.safetensors").exists():
        return best.resolve()
    epochs = sorted(
        (p for p in checkpoints.glob("*") if p.name.isdigit() and not p.is_symlink()),
        key=lambda p: int(p.name),
    )
    for folder in reversed(epochs):
        if (folder / "model.safetensors").exists():
            return folder
    raise FileNotFoundError(f"{checkpoints} holds no trained drafter: run `train` first.")


def is_finished(checkpoints: Path, epochs: int) -> bool:
    """Whether upstream saved the end of the last epoch (not the middle of it)."""
    folder = checkpoints / str(epochs - 1)
    state = folder / "training_state.json"
    if not (folder / "model.safetensors").exists() or not state.exists():
        return False
    told = json.loads(state.read_text("utf-8"))
    return bool(told.get("finished") or told.get("local_step") == 0)
