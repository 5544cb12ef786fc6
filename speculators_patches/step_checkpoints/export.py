"""A step checkpoint as a folder that vLLM and upstream's `from_pretrained` load.

A checkpoint holds what trained. The rest of the drafter (embeddings, head, vocabulary mapping, its
configuration) is built again by upstream's own code from the `run.yaml` that upstream wrote into
the save path, and compared with the SHA-256 values in the checkpoint.
"""

from __future__ import annotations

import argparse
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from speculators_patches.checkpointing.errors import CheckpointError, NotSameRunError


def export(checkpoint: Path, output: Path) -> None:
    """Writes `output` (it must not exist; complete or absent), weights in bf16 as upstream's are.

    Args:
        checkpoint: a committed folder in `<save path>/step_checkpoints/`.

    Raises:
        CheckpointError: the checkpoint, `run.yaml` or the verifier is not what it was.
    """
    import torch
    from speculators.train.checkpointer import convert_float_dtype, patch_config_dtype

    from speculators_patches.checkpointing import reading, saved
    from speculators_patches.checkpointing.state import tensor_sha256

    record = reading.inspect(checkpoint)
    if record is None or record.manifest is None:
        problem = "it is none" if record is None else record.problem
        raise CheckpointError(f"{checkpoint} can't be exported: {problem}")
    parts = [saved.read(record, rank) for rank in range(record.manifest.world_size)]
    trained = _whole_tensors(parts)
    model = _build(checkpoint.parent.parent / "run.yaml")
    live = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, wanted in parts[0].frozen.items():
        # Training keeps frozen weights in fp32, where a freshly built drafter may not.
        if parts[0].placements or name not in live:
            continue
        if wanted not in (tensor_sha256(live[name]), tensor_sha256(live[name].float())):
            raise NotSameRunError(
                f"{name!r} is not the one that {checkpoint.name} was trained with: the verifier or "
                "the vocabulary mapping named in run.yaml has changed"
            )
    with torch.no_grad():
        for name, value in trained.items():
            if name not in live or live[name].shape != value.shape:
                raise NotSameRunError(f"{checkpoint.name} holds {name!r}, run.yaml's drafter not")
            live[name].data = value
    staged = output.with_name(f".{output.name}.{secrets.token_hex(6)}.tmp")
    try:
        model.save_pretrained(
            staged, state_dict=convert_float_dtype(model.state_dict(), torch.bfloat16)
        )
        patch_config_dtype(staged / "config.json", torch.bfloat16)
        staged.rename(output)
    except OSError as error:
        raise CheckpointError(f"{output} can't be written ({error})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _build(run_yaml: Path) -> Any:
    """The drafter as upstream's `main` builds it, before training."""
    from speculators.model import SpeculatorModel
    from speculators.train import cli
    from speculators.train.config import TrainConfig

    if not run_yaml.is_file():
        raise CheckpointError(f"{run_yaml} is missing: export needs the settings that trained it")
    config = TrainConfig.from_sources(cli={}, config_path=str(run_yaml), argv=[])
    args = argparse.Namespace(**config.flatten())
    mappings: tuple[Any, Any, Any] = (None, None, None)
    try:
        if args.speculator_type != "mtp":
            mappings = cli.parse_vocab_mappings(args)
        model_class = (SpeculatorModel.registry or {})[args.speculator_type]
        d2t, t2d, size = mappings
        return cli.build_draft_model(args, model_class, t2d, d2t, size)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"the drafter of {run_yaml} can't be built again: {error}") from error


def _whole_tensors(parts: list[Any]) -> dict[str, Any]:
    """Name -> whole tensor on the CPU, put together from the ranks' shards where there are any."""
    import torch

    whole = dict(parts[0].tree["model"])
    for path, placement in parts[0].placements.items():
        if not path.startswith("model/"):
            continue
        name = path.removeprefix("model/")
        match = re.fullmatch(r"\((?:_?Strided)?Shard\(dim=(\d+)\),?\)", placement["placements"])
        if match is None and "Replicate" not in placement["placements"]:
            raise CheckpointError(f"{name!r} is laid out as {placement['placements']}: not covered")
        if match is not None:
            shards = [part.tree["model"][name] for part in parts]
            whole[name] = torch.cat(shards, dim=int(match[1]))
    return whole
