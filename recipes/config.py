"""The settings of a run: one frozen dataclass, its presets, and where each value came from.

Order of precedence: preset < a run folder's own settings < additions to the preset < `--config`
(TOML or JSON) < `--set key=value`. The resolved settings are written into the run folder, so a run
can be read and repeated without its shell.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recipes.presets import ADDITIONS, PRESETS, VALUES, added

__all__ = ["ADDITIONS", "PRESETS", "ConfigError", "Recipe", "resolve", "split_preset"]


class ConfigError(ValueError):
    """A setting that cannot be used; the message says which, why, and what to do."""


def _setting(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on. The defaults are the published round 1 run's."""

    # What is trained, and for whom
    body: str = _setting(
        "coolthor/Huihui-gemma-4-26B-A4B-it-abliterated-FP8-Dynamic",
        "verifier: hub id or local folder",
    )
    draft_start: str = _setting(
        "RedHatAI/gemma-4-26B-A4B-it-speculator.eagle3",
        "drafter to fine-tune, hub id or folder; empty = a fresh one (needs draft_vocab_size)",
    )
    drafter_kind: Literal["eagle3", "peagle", "dflash", "dspark"] = _setting(
        "eagle3", "what is trained; draft_start must be of that kind, or empty"
    )
    mask_token_id: int | None = _setting(
        None, "token for positions not drafted yet (not for eagle3); none = the tokenizer's mask"
    )
    draft_vocab_size: int | None = _setting(
        None, "draft vocabulary of a fresh drafter; a started one keeps its own"
    )
    target_layers: tuple[int, ...] = _setting(
        (2, 15, 27), "body layers whose hidden states feed the drafter (the last one is added)"
    )

    body_layers: int = _setting(30, "layers of the body; read from its config where it is a folder")

    # Data
    prompts: str = _setting("magpie", "prompt source: an upstream preset's name or a .jsonl file")
    samples: int = _setting(50_000, "prompts to answer")
    regenerate_max_tokens: int = _setting(2048, "longest answer, tokens")
    regenerate_sampling: str = _setting(
        '{"temperature": 0.7, "seed": 0}', "JSON merged into each request, as it will be served"
    )
    regenerate_system_prompt: str = _setting("", "given to conversations that have none")
    thinking: bool | None = _setting(
        None, "enable_thinking in regenerate, bench and serve; none = the chat template's own way"
    )
    regenerate_concurrency: int = _setting(64, "requests at once, over all endpoints")
    regenerate_connect_timeout: float = _setting(10.0, "seconds to wait for a connection")
    regenerate_read_timeout: float = _setting(900.0, "seconds to wait for one whole answer")
    regenerate_server_wait: float = _setting(
        900.0, "seconds that no endpoint may answer, or the disk be full, before regenerate stops"
    )
    regenerate_error_share: float = _setting(0.02, "largest tolerated share of failed prompts")
    prepare_drop_share: float = _setting(
        0.02, "largest tolerated share of answers that prepare drops; minimum_valid_tokens not"
    )
    seq_len: int = _setting(4096, "packed tokens a training step")
    minimum_valid_tokens: int | None = _setting(None, "drop rows with fewer trainable tokens")

    # Training
    epochs: int = _setting(1, "passes over the data")
    optimizer: Literal["adamw", "muon"] = _setting(
        "adamw", "upstream's default became muon in 0.7; the published run used adamw"
    )
    lr: float = _setting(1e-4, "peak learning rate (upstream's default when the run was made)")
    scheduler: Literal["linear", "cosine", "none"] = _setting("cosine", "learning-rate schedule")
    ttt_steps: int = _setting(3, "training-time-test steps (positions trained)")
    train_share: float = _setting(0.9, "share of the rows trained on; the rest validates")
    seed: int = _setting(42, "seed of the data order and of fresh weights")
    num_workers: int | None = _setting(None, "DataLoader workers; none = upstream's default")
    loss_implementation: Literal["auto", "fused", "eager"] = _setting(
        "auto",
        "auto: eager, whose sums are in one order; fused saves at most 7 % of an H100's step",
    )
    deterministic: bool = _setting(
        False,
        "on a GPU: asks for kernels that sum in one order and do not depend on earlier steps, so "
        "that a resumed run of the same hidden states can be the uninterrupted one to the last bit "
        "(one was, on an H200, killed once); `plan` says what they cost; with drafter_kind=peagle "
        "it is not, as the first step after a resume runs other code",
    )
    log_every: int = _setting(
        10,
        "every so many training steps are logged; in those upstream waits for the GPU at each "
        "phase, to time it (its own default is 1)",
    )
    hidden_states: Literal["online", "offline"] = _setting(
        "online", "online: generated while training, deleted after use; offline: extracted first"
    )
    request_timeout: float = _setting(120.0, "seconds for one extraction request")
    max_retries: int = _setting(3, "retries of one extraction request")
    producer_wait_minutes: float = _setting(
        15.0, "how long training waits for a vLLM that failed, before it stops with a checkpoint"
    )
    producer_stall_seconds: float = _setting(
        180.0, "a vLLM that answers nothing for so long while a request waits is started again"
    )
    hidden_states_dtype: Literal["bfloat16", "float32"] = _setting(
        "bfloat16", "precision of the hidden states and of autocast in training"
    )
    checkpoint_every_minutes: float = _setting(
        10.0, "minutes between exact checkpoints while training; 0 = not by time"
    )
    checkpoint_every_steps: int | None = _setting(
        None, "optimizer steps between exact checkpoints, besides those by time"
    )
    checkpoint_keep: int = _setting(3, "newest exact checkpoints kept; the best is always kept")
    checkpoint_keep_every: int | None = _setting(
        None, "keep also the first checkpoint of each stretch of so many steps"
    )
    best_by: Literal["loss", "greedy-tokens", "probabilistic-tokens"] = _setting(
        "loss",
        "what makes a checkpoint the best in validation: upstream's loss, or expected tokens a "
        "step in service, with greedy drafts or at serve_temperature with probabilistic ones",
    )
    train_extra: tuple[str, ...] = _setting((), "more flags for upstream's train, verbatim")

    # More than one GPU or machine
    trainers: int = _setting(1, "training processes, one a GPU, started by torchrun if above 1")
    producers: int = _setting(1, "vLLM servers that regenerate, and produce hidden states")
    transfer: Literal["file", "mooncake"] = _setting("file", "how hidden states reach the trainers")
    hosts: tuple[str, ...] = _setting(
        (), "machines by name or address, the leading one first, e.g. a,b; empty = this one"
    )
    host_gpus: int | None = _setting(
        None, "GPUs of each machine; none = one for each process that is placed there"
    )
    network_gbit: float = _setting(10.0, "link between two machines, Gbit/s")
    disk_mb: float = _setting(1000.0, "speed of the shared folder, MB/s (transfer=file)")
    trainer_tokens_s: float | None = _setting(
        None, "tokens/s that one trainer alone consumes, for plan; none = what is known"
    )
    producer_tokens_s: float | None = _setting(
        None, "tokens/s that one producer alone delivers, for plan; none = what is known"
    )
    fsdp: bool = _setting(False, "shard the drafter over the trainers (upstream's --fsdp-shard)")
    max_restarts: int = _setting(3, "how often torchrun starts all trainers again if one dies")
    rendezvous_port: int = _setting(29_400, "port at which the trainers of several machines meet")
    producer_port: int = _setting(8100, "first port of the vLLM servers on other machines")
    mooncake_master: str = _setting(
        "", "host:port of a Mooncake master that you run; empty = the recipe starts one"
    )
    mooncake_port: int = _setting(50_051, "port of the Mooncake master that the recipe starts")
    mooncake_segment_gib: float = _setting(
        4.0, "memory of each producer for hidden states that wait for a trainer, GiB"
    )

    # vLLM
    dtype: str = _setting("auto", "vLLM's --dtype")
    train_vllm_share: float = _setting(0.5, "GPU memory share of vLLM while the trainer runs too")
    train_max_model_len: int | None = _setting(
        None, "vLLM's context while training; none = seq_len + 1, which every row fits"
    )
    bench_vllm_share: float = _setting(0.85, "GPU memory share of vLLM in bench and regenerate")
    bench_max_model_len: int = _setting(8192, "vLLM's context in bench and regenerate")
    serve_vllm_share: float = _setting(0.65, "GPU memory share in production")
    serve_max_model_len: int = _setting(65_536, "context in production, tokens")
    kv_cache_dtype: str = _setting("fp8", "vLLM's --kv-cache-dtype in regenerate, bench, serve")
    prefix_caching: bool = _setting(
        True, "vLLM's --enable-prefix-caching in regenerate, bench and serve"
    )
    tool_parser: str = _setting("gemma4", "vLLM's --tool-call-parser in serve; empty = none")
    serve_port: int = _setting(8000, "port of the production server")
    num_speculative_tokens: int = _setting(4, "tokens drafted a step in serve")
    draft_sample_method: Literal["auto", "greedy", "probabilistic"] = _setting(
        "auto",
        "how serve drafts; auto = greedy, or probabilistic where this run's bench showed that to "
        "be faster at serve_temperature",
    )
    head_temperature: float | Literal["auto"] = _setting(
        1.0,
        "the served copy of the trained drafter has its logits divided by this; auto = by what "
        "held-out answers at serve_temperature show to be accepted more often, else 1",
    )
    calibrate_prompts: int = _setting(
        128,
        "held-out conversations that head_temperature=auto is judged on, at most; 24 are needed",
    )
    serve_temperature: float = _setting(
        0.7, "temperature that production is asked with, mostly; for draft_sample_method=auto"
    )
    vllm_extra: tuple[str, ...] = _setting((), "more flags for every vLLM server, verbatim")
    start_timeout: float = _setting(1800.0, "seconds a server may take to become ready")

    # Endpoints the user already runs (empty: the recipe starts its own)
    regenerate_endpoint: str = _setting(
        "", "base URL, e.g. http://127.0.0.1:8000; several, separated by commas, share the work"
    )
    train_endpoint: str = _setting(
        "", "base URL of an extraction server; several, separated by commas, share the work"
    )

    # Bench
    bench_n: tuple[int, ...] = _setting((0, 1, 2, 3, 4), "drafted tokens a step to compare")
    bench_prompts: str = _setting(
        "", ".jsonl with `prompt` or `messages`; empty = the shipped workloads"
    )
    bench_prompts_each: int = _setting(16, "prompts taken of each shipped workload (of 40)")
    bench_concurrency: tuple[int, ...] = _setting((1,), "requests at once, e.g. 1,2,4,8")
    bench_blocks: int = _setting(2, "shares of the prompts between which the arms take turns")
    bench_probabilistic: bool = _setting(
        False,
        "compare the fine-tuned drafter with draft_sample_method probabilistic at every n, not "
        "only at num_speculative_tokens",
    )
    bench_mtp: str = _setting(
        "google/gemma-4-26B-A4B-it-assistant", "MTP assistant to compare with; empty = none"
    )
    bench_dflash: str = _setting(
        "z-lab/gemma-4-26B-A4B-it-DFlash", "DFlash drafter to compare with; empty = none"
    )
    bench_temperatures: tuple[float, ...] = _setting((0.7,), "sampling temperatures")
    bench_max_tokens: int = _setting(200, "longest answer in the bench, tokens")

    def describe(self) -> list[tuple[str, Any, str]]:
        """(name, value, what it means) of every setting, in order."""
        return [
            (f.name, getattr(self, f.name), f.metadata["doc"]) for f in dataclasses.fields(self)
        ]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def regenerate_endpoints(self) -> tuple[str, ...]:
        """The endpoints that the user runs, in order, each once."""
        return listed(self.regenerate_endpoint)

    @property
    def train_endpoints(self) -> tuple[str, ...]:
        """The extraction servers that the user runs, in order, each once."""
        return listed(self.train_endpoint)


def listed(urls: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in urls.split(",") if part.strip()))


def _parse(name: str, annotation: Any, text: Any) -> Any:
    """`text` (a string from --set, or a value from a file) as the field's type."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        words = [w for a in args if typing.get_origin(a) is Literal for w in typing.get_args(a)]
        if words:  # a number, or a word in its place
            return text if text in words else _parse(name, args[0], text)
        if text in (None, "none", "None", ""):
            return None
        return _parse(name, next(a for a in args if a is not type(None)), text)
    if origin is Literal:
        if text not in args:
            raise ConfigError(f"{name}={text!r} is not one of {', '.join(map(str, args))}.")
        return text
    if origin is tuple:
        return tuple(_parse(name, args[0], part) for part in _parts(name, text))
    if annotation is bool:
        if isinstance(text, bool):
            return text
        if str(text).lower() in ("true", "1", "yes", "on"):
            return True
        if str(text).lower() in ("false", "0", "no", "off"):
            return False
        raise ConfigError(f"{name}={text!r} is neither true nor false.")
    if annotation is str and not isinstance(text, str):
        raise ConfigError(f"{name}={text!r} must be text.")
    if isinstance(text, bool):
        raise ConfigError(f"{name}={text!r} must be a {annotation.__name__}, not a truth value.")
    try:
        value = annotation(text)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}={text!r} is not a valid {annotation.__name__}.") from None
    if annotation is float and not math.isfinite(value):
        raise ConfigError(f"{name}={text!r} must be a finite number.")
    if annotation is int and isinstance(text, float) and text != value:
        raise ConfigError(f"{name}={text!r} must be a whole number.")
    return value


def _parts(name: str, text: Any) -> list[Any]:
    """Items of a tuple: a list, a JSON list (for items with commas), or words between commas."""
    if isinstance(text, list | tuple):
        return list(text)
    if not isinstance(text, str):
        raise ConfigError(f"{name}={text!r} must be a list.")
    if text.lstrip().startswith("["):
        try:
            return list(json.loads(text))
        except ValueError as e:
            raise ConfigError(f"{name}={text!r} is not a JSON list: {e}.") from None
    return [part for part in text.split(",") if part != ""]


def _read_file(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"Cannot read the config file {path}: {e.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"The config file {path} is not UTF-8 text.") from None
    try:
        data = json.loads(raw) if path.suffix == ".json" else tomllib.loads(raw)
    except ValueError as e:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"The config file {path} is not valid {kind}: {e}.") from None
    if not isinstance(data, dict):
        raise ConfigError(f"The config file {path} must hold a table of settings.")
    # A run folder's own config.json is accepted as it is.
    settings = data.get("settings", data)
    if not isinstance(settings, dict):
        raise ConfigError(f"`settings` in the config file {path} must be a table.")
    return dict(settings)


def split_preset(preset: str) -> tuple[str, list[str]]:
    """`h100+ttt4` -> ("h100", ["ttt4"]).

    Raises:
        ConfigError: there is no such preset or addition.
    """
    machine, *additions = preset.split("+")
    if machine not in PRESETS:
        raise ConfigError(f"There is no preset {machine!r}; presets are {', '.join(PRESETS)}.")
    for addition in additions:
        if addition not in ADDITIONS:
            raise ConfigError(
                f"{addition!r} cannot be added to preset {machine}: there are "
                f"{', '.join(ADDITIONS)}."
            )
    return machine, additions


def resolve(
    preset: str,
    config_file: Path | None = None,
    assignments: typing.Sequence[str] = (),
    saved: typing.Mapping[str, Any] | None = None,
    saved_origin: typing.Mapping[str, str] | None = None,
) -> tuple[Recipe, dict[str, str]]:
    """The settings and, for each changed one, where it came from.

    Args:
        preset: a machine's, with additions behind it: `h100+ttt4`.
        saved: a run folder's settings, which hold until the file or an assignment changes them.
        saved_origin: where those came from.

    Raises:
        ConfigError: unknown preset, key or value, named with what is allowed.
    """
    machine, additions = split_preset(preset)
    hints = typing.get_type_hints(Recipe)
    values: dict[str, Any] = dict(VALUES[machine])
    origin = dict.fromkeys(values, f"preset {machine}")

    def put(name: str, raw: Any, source: str) -> None:
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=3)
            hint = f" Did you mean {', '.join(near)}?" if near else " `settings` lists them all."
            raise ConfigError(f"{source}: there is no setting {name!r}.{hint}")
        values[name] = _parse(name, hints[name], raw)
        origin[name] = source

    for name, raw in (saved or {}).items():
        put(name, raw, "the run folder")
    if saved is not None:
        origin = dict(saved_origin or {})
    for addition in additions:
        values |= added(addition, machine)
        origin |= dict.fromkeys(added(addition, machine), f"preset {addition}")
    if config_file is not None:
        for name, raw in _read_file(config_file).items():
            put(name, raw, str(config_file))
    for assignment in assignments:
        name, equals, raw = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment!r} must have the form key=value.")
        put(name.strip(), raw.strip(), "--set")
    from recipes.config_checks import check  # which takes its types from here

    recipe = Recipe(**values)
    check(recipe)
    return recipe, origin
