"""What makes two runs of upstream's trainer the same run, as fingerprint fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from speculators_patches import overlay, patches
from speculators_patches.checkpointing.fingerprint import Field, digest


def fields(trainer: Any) -> list[Field]:
    """The fields of a `Trainer` whose model, loaders and optimizers are set up."""
    model = getattr(trainer.model, "module", trainer.model)
    return [
        *_data(trainer),
        *model_fields(model),
        Field("model.attention", _attention(model)),
        *_training(trainer),
        # Another kind of device computes other bits and has other random generators.
        Field("device", str(trainer.device_type), overridable=False),
        Field("sharded", bool(trainer.is_distributed and trainer.config.fsdp_shard), False),
        Field(
            "patches.learning",
            [name for name in overlay.in_force() if patches.table()[name].changes_learning],
        ),
    ]


def _data(trainer: Any) -> list[Field]:
    found = []
    for name, loader in (("train", trainer.train_loader), ("validation", trainer.val_loader)):
        sampler: Any = getattr(loader, "batch_sampler", None)
        if hasattr(sampler, "lengths"):
            found.append(Field(f"data.{name}_rows", digest(int(n) for n in sampler.lengths)))
        if tokens := _tokens(getattr(loader, "dataset", None)):
            found.append(Field(f"data.{name}_tokens", tokens))
    sampler = getattr(trainer.train_loader, "batch_sampler", None)
    if hasattr(sampler, "batch_max_length"):
        found.append(Field("data.total_seq_len", int(sampler.batch_max_length)))
        found.append(Field("data.order_seed", int(getattr(sampler, "seed", 0))))
    else:
        found.append(Field("data.batches", len(trainer.train_loader)))
    return found


# Rows as long as before may hold other text, above all where all are cut to the same length.
_ROWS_READ = 64


def _tokens(dataset: Any) -> str | None:
    """Digest of the tokens and masks of rows spread over the data set; None if it has no table."""
    table: Any = getattr(dataset, "data", None)
    if not {"input_ids", "loss_mask"} <= set(getattr(table, "column_names", None) or ()):
        return None
    plain = table.with_format(None)
    numbers: list[int] = []
    for index in range(0, len(plain), max(1, len(plain) // _ROWS_READ)):
        row = plain[index]
        numbers += [*map(int, row["input_ids"]), *map(int, row["loss_mask"])]
    return digest(numbers)


def model_fields(model: Any) -> list[Field]:
    """What the shapes of a drafter's tensors do not tell."""
    layers = getattr(model, "target_layer_ids", None)
    found = [
        Field("model.class", _class(model)),
        Field("model.target_layers", None if layers is None else [int(one) for one in layers]),
        Field("model.architecture", _architecture(getattr(model, "config", None))),
    ]
    for name in ("d2t", "t2d"):
        mapping = getattr(model, name, None)
        if mapping is not None:
            found.append(Field(f"model.{name}", digest(int(n) for n in mapping.tolist())))
    # Of the patch softcap_targets: trained on with another teacher, it would be another run.
    cap = getattr(getattr(model, "verifier_lm_head", None), "final_logit_softcapping", None)
    if cap is not None:
        found.append(Field("teacher.softcap", float(cap)))
    return found


def _training(trainer: Any) -> list[Field]:
    from speculators.train import trainer as upstream

    config = trainer.config
    found = [
        Field("optimizer.name", config.optimizer),
        Field("optimizer.lr", float(config.lr)),
        Field("optimizer.weight_decay", float(config.weight_decay)),
    ]
    if config.optimizer == "muon":
        found += [
            Field("optimizer.muon_lr", float(config.muon_lr)),
            Field("optimizer.muon_momentum", float(config.muon_momentum)),
            Field("optimizer.muon_weight_decay", float(config.muon_weight_decay)),
            Field("optimizer.muon_ns_steps", int(config.muon_ns_steps)),
            Field("optimizer.muon_adjust_lr_fn", str(config.muon_adjust_lr_fn)),
        ]
    found.append(Field("schedule.type", config.scheduler_type))
    if config.scheduler_type != "none":
        warmup, total = upstream._resolve_scheduler_steps(config, len(trainer.train_loader))
        found += [
            Field("schedule.warmup_steps", int(warmup)),
            Field("schedule.total_steps", int(total)),
        ]
    if config.scheduler_type == "cosine":
        found.append(Field("schedule.cycles", float(config.scheduler_num_cosine_cycles)))
    found.append(Field("training.dtype", str(config.hidden_states_dtype).removeprefix("torch.")))
    for name, value in sorted((config.train_call_kwargs or {}).items()):
        found.append(Field(f"training.{name}", _plain(value)))
    return found


def _plain(value: Any) -> Any:
    """A setting as JSON: losses are functions in nested containers, told by where they live."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in sorted(value.items(), key=str)}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', '')}:{name}"


# Written by transformers at will, or a place and not a property.
_NOT_THE_MODEL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


def _architecture(config: Any) -> str:
    """Digest of the draft layers' configuration: what the shapes of tensors do not tell."""
    layer = getattr(config, "transformer_layer_config", None)
    told = {
        name: value
        for name, value in (layer.to_dict() if layer is not None else {}).items()
        if name not in _NOT_THE_MODEL
    }
    for name in ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output"):
        told[name] = getattr(config, name, None)
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _class(model: Any) -> str:
    """The drafter's own class; FSDP2 makes each model one of a new class `FSDP<name>`."""
    kinds = (kind.__name__ for kind in type(model).__mro__)
    return next(name for name in kinds if not name.startswith("FSDP"))


def _attention(model: Any) -> str:
    """How the layers compute it: other bits for another one, but the same drafter."""
    layer = getattr(getattr(model, "config", None), "transformer_layer_config", None)
    return str(getattr(layer, "_attn_implementation", None))


def settings_changed(differences: Any) -> bool:
    """Whether what the user resumes despite of is a setting of optimizer or schedule."""
    return any(one.name.startswith(("optimizer.", "schedule.")) for one in differences)
