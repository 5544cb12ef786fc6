"""A copy of a drafter whose head has another temperature: its logits divided by a number.

A drafter that was trained with KL spreads its probability further than serving likes: drafts drawn
from softmax(logits / T) are accepted more often for some T below 1 (benchmarks/README.md). The best
token stays the best one, so greedy drafts do not change.

The rows of `lm_head.weight` are divided by T in float64 and rounded once to the dtype that they are
stored in. Serving then needs no flag, and no engine can overlook it, as it could a number in the
config. The copy is always made from the trained drafter, into a folder of its own, so nothing is
scaled twice; its config.json says by how much, of what, and to what, as digests:

    "head_temperature": {"value": 0.8, "of_sha256": ..., "weights_sha256": ...}
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

from recipes.run_folder import fsync_tree, rename_durably

HEAD = "lm_head.weight"
RECORD = "head_temperature"
# Of the trainer, and of no use to a server.
_LEFT_OUT = ("optimizer_state_dict.pt", "scheduler_state_dict.pt", "training_state.json",
             ".made_by_run")  # fmt: skip
_FLOATS = ("float32", "float16", "bfloat16")


class HeadError(ValueError):
    """A drafter whose head cannot be scaled; the message says why and what to do."""


def check_temperature(value: float) -> None:
    """Raises HeadError for a number that no softmax has for its temperature."""
    if not (math.isfinite(value) and 0.1 <= value <= 10):
        raise HeadError(f"head_temperature={value} must lie between 0.1 and 10.")


def recorded(drafter: Path) -> float:
    """What the logits of a drafter's folder were divided by, as its config says; 1.0 if nothing.

    A drafter that was trained on from a scaled one may have inherited the words: they count only
    while the weights are those that were written with them.
    """
    record = _config(drafter).get(RECORD)
    if not isinstance(record, dict):
        return 1.0
    if record.get("weights_sha256") != _weights_sha256(drafter):
        return 1.0
    return float(record["value"])


def scale(source: Path, target: Path, temperature: float) -> None:
    """`target`: a copy of the drafter in `source`, its logits divided by `temperature`.

    `target` is there whole or not at all, whenever the process is killed; if it holds this copy
    already, nothing is done, and any other folder of that name is replaced.

    Args:
        source: folder of a drafter as upstream saves it (config.json, *.safetensors).

    Raises:
        HeadError: its head cannot be scaled, or it is scaled already.
        OSError: it cannot be read, or `target` not written.
    """
    check_temperature(temperature)
    config = _config(source)
    file = _check(source, config)
    of = _weights_sha256(source)
    if _is_copy(target, of, temperature):
        return
    staging = target.with_name(f".{target.name}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(source, staging, ignore=shutil.ignore_patterns(*_LEFT_OUT, file.name))
    _write_scaled(file, staging / file.name, temperature)
    record = {"value": temperature, "of_sha256": of, "weights_sha256": _weights_sha256(staging)}
    text = json.dumps({**config, RECORD: record}, indent=2) + "\n"
    (staging / "config.json").write_text(text, "utf-8")
    fsync_tree(staging)
    # Out of the way in one step: a folder half deleted would still be there under its name.
    before = target.with_name(f".{target.name}.before")
    shutil.rmtree(before, ignore_errors=True)
    if target.exists():
        rename_durably(target, before)
    rename_durably(staging, target)
    shutil.rmtree(before, ignore_errors=True)


def _write_scaled(file: Path, target: Path, temperature: float) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
        weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    head = weights[HEAD]
    weights[HEAD] = (head.double() / temperature).to(head.dtype)
    if not weights[HEAD].isfinite().all():
        raise HeadError(
            f"{file}: {HEAD} divided by {temperature:g} does not fit into {head.dtype}; take a "
            "temperature nearer to 1."
        )
    save_file(weights, target, metadata={"format": "pt", **(metadata or {})})


def _check(source: Path, config: dict[str, Any]) -> Path:
    """The file that holds the head; raises HeadError where dividing it does not do what it says."""
    from safetensors import safe_open

    kind = config.get("speculators_model_type")
    layer = config.get("transformer_layer_config") or {}
    if kind == "dspark":
        raise HeadError(
            f"{source} is a dspark drafter, which adds a Markov bias to its head's logits: "
            f"dividing the head alone would not divide those; keep {RECORD}=1."
        )
    if any(part.get("final_logit_softcapping") for part in (config, layer)):
        raise HeadError(
            f"{source} caps its logits (final_logit_softcapping), so that dividing its head would "
            f"not divide them; keep {RECORD}=1."
        )
    if any(part.get("tie_word_embeddings") for part in (config, layer)):
        raise HeadError(
            f"{source} uses its embedding as its head (tie_word_embeddings), and dividing it would "
            f"change what it reads; keep {RECORD}=1."
        )
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            if HEAD not in opened.keys():  # noqa: SIM118
                continue
            dtype = str(opened.get_tensor(HEAD).dtype).removeprefix("torch.")
        if dtype not in _FLOATS:
            raise HeadError(
                f"{source} stores {HEAD} as {dtype}, not as one of {', '.join(_FLOATS)}: it is "
                f"quantised; keep {RECORD}=1, or scale it before."
            )
        if (before := recorded(source)) != 1:
            raise HeadError(
                f"{source} is divided by {before:g} already: scale the drafter that was trained."
            )
        return file
    raise HeadError(
        f"{source} has no head of its own ({HEAD}): it drafts through the body's, which is not "
        f"the drafter's to divide; keep {RECORD}=1."
    )


def _is_copy(target: Path, of: str, temperature: float) -> bool:
    try:
        record = _config(target).get(RECORD)
    except (OSError, ValueError):
        return False
    wanted = {"value": temperature, "of_sha256": of}
    return (
        isinstance(record, dict)
        and {key: record.get(key) for key in wanted} == wanted
        and record.get("weights_sha256") == _weights_sha256(target)
    )


def _config(drafter: Path) -> dict[str, Any]:
    return dict(json.loads((drafter / "config.json").read_text("utf-8")))


def _weights_sha256(drafter: Path) -> str:
    """Of all weights of a folder, in the order of their files' names."""
    total = hashlib.sha256()
    for file in sorted(drafter.glob("*.safetensors")):
        with file.open("rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()
