"""What the bench compares: drafters, numbers of drafted tokens, server flags, servers of the user.

Every arm has a body and server flags. It is compared with the arm without speculation that has the
same ones, so that a ratio is never one of two different bodies or KV caches.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.schema import ArmSpec
from recipes import no_secrets
from recipes.vllm_server import ServerSpec

NO_SPECULATION = "no speculation"
# Keys in an --arm's JSON that are the bench's; all others are vLLM's.
_OURS = ("body", "server_flags", "experimental")
# Known to corrupt text together with speculation (vLLM #40831, #52475, #53180).
_EXPERIMENTAL = re.compile("turboquant")


class ArmError(ValueError):
    """An arm that cannot be understood; the message says which part and what is expected."""


@dataclass(frozen=True)
class Arm:
    """One arm and where its answers come from: a server to start, or one of the user's."""

    spec: ArmSpec
    server: ServerSpec | None = None
    endpoint: str = ""


@dataclass(frozen=True)
class Drafter:
    """A way of drafting, before it is multiplied by n and by server flags."""

    name: str
    config: Mapping[str, Any]
    body: str = ""
    server_flags: tuple[str, ...] = ()
    experimental: bool = False


def named(text: str, what: str) -> tuple[str, str]:
    """`name=value` cut in two.

    Raises:
        ArmError: there is no name or no value.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise ArmError(f"{what} {text!r} must have the form name=value.")
    return name.strip(), value.strip()


def parse_arm(text: str) -> Drafter:
    """`name={speculative-config JSON}`; `body`, `server_flags`, `experimental` in it are ours."""
    name, value = named(text, "--arm")
    try:
        config = json.loads(value)
    except ValueError as e:
        raise ArmError(f"--arm {name}: what follows the = is not valid JSON ({e}).") from None
    if not isinstance(config, dict):
        raise ArmError(f"--arm {name}: what follows the = must be a JSON object.")
    flags = config.get("server_flags", [])
    if not isinstance(flags, list) or not all(isinstance(f, str) for f in flags):
        raise ArmError(f"--arm {name}: server_flags must be a list of strings.")
    if "method" not in config and "model" not in config:
        raise ArmError(
            f'--arm {name}: vLLM needs a "method" or a "model", e.g. '
            '{"method": "eagle3", "model": "FOLDER"}.'
        )
    if config.get("rejection_sample_method") == "synthetic":
        raise ArmError(
            f"--arm {name}: synthetic acceptance takes drafts at random, so its text and speed "
            "mean nothing as an arm; --break-even uses it to time steps."
        )
    return Drafter(
        name,
        {k: v for k, v in config.items() if k not in _OURS},
        str(config.get("body", "")),
        tuple(flags),
        bool(config.get("experimental", False)),
    )


def eagle3(name: str, model: str, probabilistic: bool = False) -> Drafter:
    """An EAGLE-3 drafter; `probabilistic` uses its distribution in rejection sampling."""
    config = {"method": "eagle3", "model": model}
    if probabilistic:
        return Drafter(f"{name}, probabilistic", {**config, "draft_sample_method": "probabilistic"})
    return Drafter(name, config)


def multiply(
    drafters: Sequence[Drafter],
    ns: Iterable[int],
    variants: Mapping[str, tuple[str, ...]] | None = None,
) -> list[ArmSpec]:
    """All arms: without speculation once a body and set of flags, then each drafter at each n.

    Args:
        drafters: with names that differ. One whose config names `num_speculative_tokens` has only
            that n.
        ns: drafted tokens a step; 0 is always in.
        variants: server flags by name, each an alternative for all arms besides the plain one.

    Raises:
        ArmError: two arms of one name.
    """
    depths = sorted({n for n in ns if n > 0})
    arms: list[ArmSpec] = []
    for label, flags in {"": (), **(variants or {})}.items():
        suffix = f", {label}" if label else ""
        plain: dict[tuple[str, tuple[str, ...]], ArmSpec] = {}
        found: list[ArmSpec] = []
        for d in (Drafter(NO_SPECULATION, {}), *drafters):
            all_flags = (*d.server_flags, *flags)
            unsafe = d.experimental or bool(_EXPERIMENTAL.search(" ".join(all_flags)))
            if (d.body, all_flags) not in plain:
                words = [Path(d.body).name] if d.body else []
                words += [" ".join(d.server_flags)] if d.server_flags else []
                where = f" ({', '.join(words)})" if words else ""
                plain[d.body, all_flags] = ArmSpec(
                    f"{NO_SPECULATION}{where}{suffix}", 0, None, all_flags, unsafe, body=d.body
                )
            given = d.config.get("num_speculative_tokens")
            for n in () if not d.config else (given,) if given else depths:
                config = {**d.config, "num_speculative_tokens": n}
                found.append(ArmSpec(d.name + suffix, n, config, all_flags, unsafe, body=d.body))
        arms += [*plain.values(), *found]
    keys = [(a.name, a.n) for a in arms]
    twice = next((k for k in keys if keys.count(k) > 1), None)
    if twice:
        raise ArmError(f"Two arms are called {twice[0]!r} with n = {twice[1]}; name them apart.")
    return arms


def with_server(
    arm: ArmSpec, template: ServerSpec, request_metrics: bool | None = None, label: str = ""
) -> Arm:
    """The arm with the server it needs: `template` with its body, flags and drafter.

    Args:
        label: goes before the server's name.
        request_metrics: vLLM knows `--per-request-spec-decode-metrics`; None: look.
    """
    extra = (*template.extra_args, *arm.server_flags)
    if arm.n and (has_request_metrics() if request_metrics is None else request_metrics):
        extra = (*extra, "--per-request-spec-decode-metrics", "detailed")
    server = replace(
        template,
        name=label + "bench-" + slug(arm.key),
        model=arm.body or template.model,
        speculative_config=arm.speculative_config,
        extra_args=extra,
    )
    return Arm(arm, server)


def parse_endpoint(text: str) -> Arm:
    """`name=url`, or `name:n=url` for a server that drafts n tokens a step."""
    name, url = named(text, "--endpoint")
    if what := no_secrets.in_url(url):
        raise ArmError(
            f"--endpoint {name} holds {what}, which would be written into the "
            "results: give the address alone, and reach such a server through a tunnel (ssh -L)."
        )
    name, _, depth = name.rpartition(":") if ":" in name else (name, "", "0")
    if not depth.isdigit() or not re.match(r"https?://", url):
        raise ArmError(
            f"--endpoint {text!r} must be name=http://... or name:n=http://..., n being the tokens "
            "it drafts a step."
        )
    n = int(depth)
    return Arm(ArmSpec(name, n, {"endpoint": url} if n else None), endpoint=url)


def parse_endpoints(texts: Sequence[str]) -> list[Arm]:
    """Several of the user's servers.

    Raises:
        ArmError: as `parse_endpoint`, or two arms have one name or one address.
    """
    found = [parse_endpoint(text) for text in texts]
    for what, keys in (
        ("name and n", [a.spec.key for a in found]),
        ("address", [a.endpoint.rstrip("/").removesuffix("/v1") for a in found]),
    ):
        twice = next((k for k in keys if keys.count(k) > 1), None)
        if twice is not None:
            raise ArmError(f"Two --endpoint have the same {what}, {twice}; each arm is a server.")
    return found


def slug(text: str) -> str:
    """A name for files and logs."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower() or "arm"


def has_request_metrics() -> bool:
    """Whether the installed vLLM reports speculation per request; read, not imported."""
    package = importlib.util.find_spec("vllm")
    for folder in (package.submodule_search_locations or ()) if package else ():
        file = Path(folder) / "config" / "observability.py"
        if file.is_file():
            return "per_request_spec_decode_metrics" in file.read_text(encoding="utf-8")
    return package is None
