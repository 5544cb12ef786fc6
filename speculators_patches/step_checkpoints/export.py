"""A step checkpoint as a folder that vLLM and upstream's `from_pretrained` load.

A checkpoint holds what trained. The rest of the drafter (embeddings, head, vocabulary mapping, its
configuration) is built again by upstream's own code from the settings that the checkpoint carries,
and must be what it was: frozen tensors by their SHA-256, architecture, layers and vocabulary by
the checkpoint's fingerprint, and not one tensor that neither trained nor is known. Upstream's
`run.yaml` is read only where a checkpoint carries no settings (training that was not started by a
command line): each start of the command rewrites it, one that was refused included.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speculators_patches.checkpointing import fingerprint
from speculators_patches.checkpointing.durable import sync_folder
from speculators_patches.checkpointing.errors import CheckpointError, NotSameRunError
from speculators_patches.step_checkpoints import epoch_folder


def export(checkpoint: Path, output: Path) -> None:
    """Writes `output` (it must not exist; complete or absent), weights in bf16 as upstream's are.

    Args:
        checkpoint: a committed folder in `<save path>/step_checkpoints/`.

    Raises:
        CheckpointError: the checkpoint or the verifier is not what it was.
    """
    import torch
    from speculators.train.checkpointer import convert_float_dtype, patch_config_dtype

    from speculators_patches.checkpointing import reading, saved, tree

    checkpoint, output = checkpoint.resolve(), output.absolute()
    record = reading.inspect(checkpoint)
    if record is None or record.manifest is None:
        problem = "it is none" if record is None else record.problem
        raise CheckpointError(f"{checkpoint} can't be exported: {problem}")
    parts = [saved.read(record, rank) for rank in range(record.manifest.world_size)]
    trained = _whole_tensors(parts)
    told = tree.decode(record.manifest.meta, lambda _: None)
    model = _build(checkpoint, told["meta"])
    live = dict(model.named_parameters()) | dict(model.named_buffers())
    _check_architecture(model, told["fingerprint"], checkpoint.name)
    _check_frozen(live, parts, checkpoint.name)
    _check_complete(model, trained, parts, checkpoint.name)
    with torch.no_grad():
        for name, value in trained.items():
            if name not in live or live[name].shape != value.shape:
                raise NotSameRunError(f"{checkpoint.name} holds {name!r}, the drafter built not")
            live[name].data = value
    staged = output.with_name(f".{output.name}.{secrets.token_hex(6)}.tmp")
    try:
        model.save_pretrained(
            staged, state_dict=convert_float_dtype(model.state_dict(), torch.bfloat16)
        )
        patch_config_dtype(staged / "config.json", torch.bfloat16)
        epoch_folder.flush(staged)
        staged.rename(output)
        sync_folder(output.parent)
    except OSError as error:
        raise CheckpointError(f"{output} can't be written ({error})") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _check_architecture(model: Any, saved: Mapping[str, Any], name: str) -> None:
    """What no tensor tells: layers read, norms, rope, vocabulary mapping."""
    from speculators_patches.step_checkpoints import identity

    fields = identity.model_fields(model)
    wanted = {field.name: saved[field.name] for field in fields if field.name in saved}
    known = [field for field in fields if field.name in wanted]
    if differences := fingerprint.compare(wanted, known):
        one = differences[0]
        raise NotSameRunError(
            f"the drafter built is not the one of {name}: {one.name} was {one.saved!r} in training "
            f"and is {one.current!r} now; the verifier, the draft configuration or upstream's "
            "version has changed"
        )


def _check_frozen(live: Mapping[str, Any], parts: list[Any], name: str) -> None:
    for rank, part in enumerate(parts):
        for tensor, wanted in part.frozen.items():
            if tensor not in live or wanted not in _digests(live[tensor], rank, len(parts)):
                raise NotSameRunError(
                    f"{tensor!r} is not the one that {name} was trained with: the verifier or the "
                    "vocabulary mapping has changed"
                )


def _digests(tensor: Any, rank: int, ranks: int) -> Iterator[str]:
    """SHA-256 of every form in which training may have held this tensor."""
    from speculators_patches.checkpointing.state import tensor_sha256

    # Frozen weights are kept in fp32, where a freshly built drafter may not.
    for whole in (tensor, tensor.float()):
        yield tensor_sha256(whole)
        if ranks > 1 and whole.ndim:  # FSDP2 shards as torch.chunk does
            shards = whole.chunk(ranks)
            yield tensor_sha256(shards[rank] if rank < len(shards) else whole[:0])


def _check_complete(model: Any, trained: Any, parts: list[Any], name: str) -> None:
    known = set(trained).union(*(part.frozen for part in parts))
    if strangers := sorted(set(model.state_dict()) - known):
        raise NotSameRunError(
            f"the drafter built has {strangers[0]!r}, of which {name} knows nothing: it is not the "
            "one that was trained"
        )


def _build(checkpoint: Path, told: Mapping[str, Any]) -> Any:
    """The drafter as upstream's `main` builds it, before training."""
    from speculators.model import SpeculatorModel
    from speculators.train import cli
    from speculators.train.config import TrainConfig

    with _settings(checkpoint, told) as path, _folder_of(told):
        try:
            config = TrainConfig.from_sources(cli={}, config_path=str(path), argv=[])
            args = argparse.Namespace(**config.flatten())
            mappings: tuple[Any, Any, Any] = (None, None, None)
            if args.speculator_type != "mtp":
                mappings = cli.parse_vocab_mappings(args)
            model_class = (SpeculatorModel.registry or {})[args.speculator_type]
            d2t, t2d, size = mappings
            return cli.build_draft_model(args, model_class, t2d, d2t, size)
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"the drafter of {checkpoint.name} can't be built again: "
                f"{' '.join(str(error).split())}"
            ) from error


@contextlib.contextmanager
def _settings(checkpoint: Path, told: Mapping[str, Any]) -> Iterator[Path]:
    """A YAML file with the settings that trained."""
    if told.get("settings") is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.yaml"
            path.write_text(told["settings"])
            yield path
        return
    path = checkpoint.parent.parent / "run.yaml"
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint.name} carries no settings and {path} is missing: export needs the "
            "settings that trained it"
        )
    yield path


def _folder_of(told: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Where training was started: relative paths in its settings count from there."""
    started_in = Path(told.get("started_in") or ".")
    return contextlib.chdir(started_in) if started_in.is_dir() else contextlib.nullcontext()


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
