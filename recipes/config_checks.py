"""Settings that would fail only hours later, refused at once with one sentence each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

from recipes import no_secrets
from recipes.config import ConfigError, Recipe, listed
from recipes.scaled_drafter import HeadError, check_temperature


def check(r: Recipe) -> None:
    """Values that would fail only hours later, refused now."""
    _check_secrets(r)
    _check_data(r)
    _check_numbers(r)
    _check_producers(r)
    _check_addresses(r)
    if r.draft_start == "" and r.body and r.draft_vocab_size is None and r.body_layers > 10:
        raise ConfigError(
            "draft_start is empty, so draft_vocab_size must be set (e.g. 32000): a fresh drafter "
            "without it trains the body's whole vocabulary."
        )
    if r.drafter_kind != "eagle3" and r.draft_start.endswith("eagle3"):
        raise ConfigError(
            f"draft_start={r.draft_start} is an EAGLE-3 drafter and drafter_kind={r.drafter_kind}: "
            "name a drafter of that kind, or --set draft_start= for a fresh one."
        )
    if r.drafter_kind != "eagle3" and r.best_by != "loss":
        raise ConfigError(
            f"best_by={r.best_by} is computed for eagle3 only: with drafter_kind={r.drafter_kind} "
            "take best_by=loss."
        )
    _check_head(r)
    if r.deterministic and r.loss_implementation == "fused":
        raise ConfigError(
            "deterministic=true with loss_implementation=fused: the fused loss picks its tile by "
            "timing in any mode; take loss_implementation=auto."
        )
    if not r.target_layers or min(r.target_layers) < 0 or max(r.target_layers) >= r.body_layers:
        raise ConfigError(
            f"target_layers={r.target_layers} must name layers from 0 to {r.body_layers - 1} "
            "(body_layers is the number of the body's layers)."
        )
    if r.train_max_model_len is not None and r.train_max_model_len <= r.seq_len:
        raise ConfigError(
            f"train_max_model_len={r.train_max_model_len} must be above seq_len={r.seq_len}: vLLM "
            "would refuse the longest rows; leave it out."
        )
    if r.regenerate_max_tokens >= r.bench_max_model_len:
        raise ConfigError(
            f"regenerate_max_tokens={r.regenerate_max_tokens} must be below "
            f"bench_max_model_len={r.bench_max_model_len}, vLLM's context in regenerate."
        )
    for name in ("prompts", "bench_prompts"):
        value = getattr(r, name)
        if value.endswith((".jsonl", ".json")) and not Path(value).is_file():
            raise ConfigError(f"{name}={value} does not exist.")
    try:
        sampling = json.loads(r.regenerate_sampling)
    except ValueError:
        sampling = None
    if not isinstance(sampling, dict):
        raise ConfigError(f"regenerate_sampling={r.regenerate_sampling!r} must be a JSON object.")


# DataLoader workers of a trainer that is not told.
UPSTREAMS_WORKERS = 12

# setting -> the smallest value that makes sense; None (not set) is left alone.
_AT_LEAST = {
    "samples": 1, "seq_len": 16, "epochs": 1, "ttt_steps": 1, "regenerate_concurrency": 1,
    "regenerate_max_tokens": 1, "bench_max_tokens": 1, "num_speculative_tokens": 1,
    "draft_vocab_size": 1, "checkpoint_every_minutes": 0, "checkpoint_every_steps": 1,
    "checkpoint_keep": 1, "checkpoint_keep_every": 1, "num_workers": 0, "max_retries": 0,
    "regenerate_error_share": 0, "serve_port": 0, "minimum_valid_tokens": 0, "bench_blocks": 1,
    "log_every": 1,
    "bench_prompts_each": 1, "calibrate_prompts": 1, "body_layers": 1, "producer_wait_minutes": 0,
    "trainers": 1, "producers": 1, "host_gpus": 1, "max_restarts": 0, "rendezvous_port": 1,
    "producer_port": 1, "mooncake_port": 1,
}  # fmt: skip


def _check_numbers(r: Recipe) -> None:
    for name, least in _AT_LEAST.items():
        value = getattr(r, name)
        if value is not None and value < least:
            raise ConfigError(f"{name}={value} must be at least {least}.")
    for name in ("train_vllm_share", "bench_vllm_share", "serve_vllm_share", "train_share"):
        if not 0 < getattr(r, name) < 1:
            raise ConfigError(f"{name}={getattr(r, name)} must lie between 0 and 1.")
    if not r.serve_temperature >= 0:
        raise ConfigError(f"serve_temperature={r.serve_temperature} must be 0 or more.")
    for name in (
        "lr", "request_timeout", "start_timeout", "producer_stall_seconds", "network_gbit",
        "disk_mb", "trainer_tokens_s", "producer_tokens_s", "mooncake_segment_gib",
    ):  # fmt: skip
        if getattr(r, name) is not None and getattr(r, name) <= 0:
            raise ConfigError(f"{name}={getattr(r, name)} must be positive.")
    if r.serve_port > 65_535:
        raise ConfigError(f"serve_port={r.serve_port} is not a port: 0 (pick a free one) to 65535.")
    for name in ("rendezvous_port", "producer_port", "mooncake_port"):
        if getattr(r, name) > 65_535:
            raise ConfigError(f"{name}={getattr(r, name)} is not a port: 1 to 65535.")
    if not r.bench_n or min(r.bench_n) < 0:
        raise ConfigError(f"bench_n={r.bench_n} must list numbers of drafted tokens, 0 or more.")
    if not r.bench_concurrency or min(r.bench_concurrency) < 1:
        raise ConfigError(f"bench_concurrency={r.bench_concurrency} must list numbers from 1.")
    if not r.bench_temperatures or min(r.bench_temperatures) < 0:
        raise ConfigError(
            f"bench_temperatures={r.bench_temperatures} must list temperatures, 0 or more."
        )


def _check_head(r: Recipe) -> None:
    """A temperature for the drafter's head that cannot be had; found out hours later otherwise."""
    told = f"head_temperature={r.head_temperature}"
    if r.head_temperature == "auto":
        if r.drafter_kind != "eagle3":
            raise ConfigError(
                f"{told} is judged by expected acceptance, which is computed for eagle3 only: with "
                f"drafter_kind={r.drafter_kind} give a number."
            )
        return
    try:
        check_temperature(r.head_temperature)
    except HeadError as e:
        raise ConfigError(str(e)) from None
    if r.head_temperature == 1:
        return
    if r.drafter_kind == "dspark":
        raise ConfigError(
            f"{told} cannot be had with drafter_kind=dspark, whose logits are its head's and a "
            "Markov bias: leave it at 1."
        )
    if r.drafter_kind == "dflash" and not r.draft_start and r.draft_vocab_size is None:
        raise ConfigError(
            f"{told} needs a head of the drafter's own, which a dflash drafter has with a pruned "
            "vocabulary only: set draft_vocab_size, or leave it at 1."
        )


def _check_producers(r: Recipe) -> None:
    producers = max(r.producers, len(r.train_endpoints))
    work = min(producers, r.trainers * requests_of(r))
    if work < producers and r.hidden_states == "online":
        workers = f"{UPSTREAMS_WORKERS} (not set)" if r.num_workers is None else r.num_workers
        raise ConfigError(
            f"num_workers={workers} asks for "
            f"{_samples(requests_of(r))} at a time{' a trainer' if r.trainers > 1 else ''}, so "
            f"that {work} of {producers} producers would work and the others stand by: --set "
            f"num_workers={-(-producers // r.trainers)} or more, or producers={work}."
        )
    if r.transfer == "mooncake" and r.hidden_states == "offline":
        raise ConfigError(
            "transfer=mooncake keeps hidden states in memory while training consumes them, and "
            "hidden_states=offline wants them as files: take transfer=file, or online."
        )
    if r.mooncake_segment_gib < 1 / 64:
        raise ConfigError(
            f"mooncake_segment_gib={r.mooncake_segment_gib} must be at least 1/64 (0.015625), "
            "Mooncake's smallest."
        )
    if r.mooncake_master and not _is_address(r.mooncake_master):
        raise ConfigError(f"mooncake_master={r.mooncake_master!r} must have the form host:port.")


def requests_of(r: Recipe) -> int:
    """Hidden states that one trainer asks for at a time: one for each of its workers."""
    return max(1, UPSTREAMS_WORKERS if r.num_workers is None else r.num_workers)


def _samples(count: int) -> str:
    return "one sample" if count == 1 else f"{count} samples"


def _check_secrets(r: Recipe) -> None:
    """Before any other check, as those repeat what they refuse."""
    if why := no_secrets.in_flags(r.vllm_extra):
        raise ConfigError(f"vllm_extra: {why}.")
    for setting in ("regenerate_endpoint", "train_endpoint", "mooncake_master", "hosts"):
        value = getattr(r, setting)
        for address in listed(value) if isinstance(value, str) else value:
            if what := no_secrets.in_url(address):
                raise ConfigError(
                    f"{setting} holds {what}, which would be written into the run folder and its "
                    "logs: give the address alone; a server that wants a password is reached "
                    "through a tunnel (ssh -L)."
                )
    for setting, value in vars(r).items():
        words = (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
        if any(isinstance(word, str) and no_secrets.in_text(word) for word in words):
            raise ConfigError(
                f"{setting} holds an address with a user's name or password, which would be "
                "written into the run folder and its logs: give the address alone."
            )


def _check_addresses(r: Recipe) -> None:
    """What must name a machine or a server does, and no port is used for two things."""
    for name in r.hosts:
        if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
            raise ConfigError(
                f"hosts names {name!r}, which is no name or IPv4 address: machines between commas, "
                "without spaces or ports (producer_port and others set those)."
            )
    for setting in ("regenerate_endpoint", "train_endpoint"):
        for url in listed(getattr(r, setting)):
            if not _is_url(url):
                raise ConfigError(
                    f"{setting}={url!r} is no URL of a server, such as http://127.0.0.1:8000."
                )
    if len(r.hosts) < 2:
        return  # on one machine, servers take free ports
    last = r.producer_port + r.producers - 1
    if last > 65_535:
        raise ConfigError(
            f"producer_port={r.producer_port} is the first of producers={r.producers} ports, and "
            f"{last} is above 65535: lower it."
        )
    taken = {"rendezvous_port": r.rendezvous_port}
    if r.transfer == "mooncake" and not r.mooncake_master:
        taken["mooncake_port"] = r.mooncake_port
    for name, port in taken.items():
        if r.producer_port <= port <= last:
            raise ConfigError(
                f"{name}={port} is one of the producers' ports, {r.producer_port} to {last}: "
                "choose another."
            )
    if taken.get("mooncake_port") == r.rendezvous_port:
        raise ConfigError(
            f"rendezvous_port={r.rendezvous_port} is mooncake_port too: choose another."
        )


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        usable = parts.port != 0  # raises where it is no number
    except ValueError:
        return False
    host = parts.hostname or ""
    return parts.scheme in ("http", "https") and usable and bool(host) and " " not in text


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdigit() and 0 < int(port) < 65_536


def _check_data(r: Recipe) -> None:
    for name in ("regenerate_error_share", "prepare_drop_share"):
        if not 0 <= getattr(r, name) <= 1:
            raise ConfigError(f"{name}={getattr(r, name)} must lie between 0 and 1.")
    for name in ("regenerate_connect_timeout", "regenerate_read_timeout"):
        if not getattr(r, name) > 0:
            raise ConfigError(f"{name}={getattr(r, name)} must be more than 0 seconds.")
    if not r.regenerate_server_wait >= 0:
        raise ConfigError(f"regenerate_server_wait={r.regenerate_server_wait} must be 0 or more.")
    if r.thinking is not None and "chat_template_kwargs" in r.regenerate_sampling:
        raise ConfigError(
            f"thinking={r.thinking} and chat_template_kwargs in regenerate_sampling say the same "
            "thing twice: leave one of them out."
        )
