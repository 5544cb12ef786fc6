"""Upstream's own checkpoint folders (`<save path>/<epoch>/`, which vLLM loads), all or nothing.

Written by upstream's checkpointer into a hidden folder beside the target, flushed to the disk, then
renamed. They are lossy (bf16) and are for serving and for other tools; a resume uses the step
checkpoints.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import zipfile
from pathlib import Path
from typing import Any

from speculators_patches.checkpointing.durable import sync_folder

logger = logging.getLogger("speculators")

STATE = "training_state.json"
_HIDDEN = re.compile(r"\.step-checkpoints-(new|old)-(\d+)-[0-9a-f]{12}")

# What upstream and `save_best_scope` put into such a folder.
_KNOWN = re.compile(
    r"(model|optimizer_state_dict|scheduler_state_dict|config|generation_config|training_state|"
    r"val_metrics|train_command|\.made_by_run|model-\d+-of-\d+|model\.safetensors\.index)"
    r"(\.(safetensors|pt|json|txt))?|\w+\.py"
)


class PublishFailed(RuntimeError):
    """A folder could not be written; what was there before still is."""


def due(config: Any, epoch: int) -> bool:
    """Upstream's rule for which epochs get a folder."""
    return config.checkpoint_freq < 1 or epoch == 0 or (epoch + 1) % config.checkpoint_freq == 0


def publish(
    trainer: Any, epoch: int, local_step: int, *, finished: bool = False, epoch_ended: bool = True
) -> None:
    """Writes `<save path>/<epoch>/` from the live trainer; every rank calls it.

    Args:
        local_step: batches of the epoch trained on.
        finished: recorded: no further step will follow.
        epoch_ended: the whole epoch is trained (upstream's resume then goes to the next one).

    Raises:
        PublishFailed: on rank 0; the others do not hear of it.
    """
    checkpointer = trainer.checkpointer
    name = f".step-checkpoints-new-{epoch}-{secrets.token_hex(6)}"
    staged = checkpointer.path / name
    error = _all_ranks(
        trainer, checkpointer.save_checkpoint, trainer.model, trainer.optimizers, name
    )
    if trainer.schedulers:
        staged.mkdir(exist_ok=True) if trainer.rank == 0 else None
        error = (
            _all_ranks(trainer, checkpointer.save_scheduler_state_dict, trainer.schedulers, name)
            or error
        )
    if trainer.rank != 0:
        return
    try:
        if error is not None:
            raise error
        # Upstream's own keys and meaning: a local_step above 0 is the middle of an epoch.
        state = {
            "epoch": epoch,
            "local_step": 0 if epoch_ended else local_step,
            "global_step": trainer.global_step,
            "finished": finished,
        }
        (staged / STATE).write_text(json.dumps(state))
        flush(staged)
        put_in_place(staged, checkpointer.path / str(epoch))
        _label(checkpointer.path, epoch, "end" if epoch_ended else f"step{local_step}")
    except Exception as failure:
        shutil.rmtree(staged, ignore_errors=True)
        raise PublishFailed(
            f"{checkpointer.path / str(epoch)} was not written ({failure}); free space or mend the "
            "disk, then run `checkpoints export` or resume"
        ) from failure


def put_in_place(staged: Path, target: Path) -> None:
    """Renames `staged` to `target`; an earlier version of our kind goes, anything else is kept."""
    old = None
    if target.exists() or target.is_symlink():
        if _is_upstreams(target):
            old = target.with_name(f".step-checkpoints-old-{target.name}-{secrets.token_hex(6)}")
        else:
            old = next(
                path
                for n in itertools.count(1)
                if not (path := target.with_name(f"{target.name}.kept{n}")).exists()
            )
            logger.warning(f"{target} holds files that training did not write: kept as {old.name}")
        target.rename(old)
    staged.rename(target)
    sync_folder(target.parent)
    if old is not None and old.name.startswith("."):
        shutil.rmtree(old, ignore_errors=True)


def sweep(save_path: Path) -> None:
    """Removes what a process that died while publishing left; an old version goes back first."""
    for path in sorted(save_path.glob(".step-checkpoints-*")):
        match = _HIDDEN.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir():
            continue
        target = save_path / match[2]
        if match[1] == "old" and not target.exists():
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def newest_complete(save_path: Path) -> int | None:
    """The newest epoch folder from which upstream can resume, or None."""
    epochs = [
        int(path.name)
        for path in (save_path.iterdir() if save_path.is_dir() else ())
        if path.name.isdecimal() and path.is_dir() and not path.is_symlink()
    ]
    return next((one for one in sorted(epochs, reverse=True) if _complete(save_path, one)), None)


def newer_than_its_state(folder: Path) -> str | None:
    """A file that upstream wrote after `training_state.json`, which it writes last, or None.

    Upstream saves over a folder file by file; killed in between, it leaves files of two saves.
    """
    try:
        written = (folder / STATE).stat().st_mtime_ns
        parts = ("model.safetensors", "optimizer_state_dict.pt", "scheduler_state_dict.pt")
        found = [name for name in parts if (folder / name).exists()]
        return next((n for n in found if (folder / n).stat().st_mtime_ns > written), None)
    except OSError:
        return None


def state_of(folder: Path) -> dict[str, Any]:
    """`training_state.json` of an epoch folder; empty if absent or torn."""
    try:
        content = json.loads((folder / STATE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _complete(save_path: Path, epoch: int) -> bool:
    folder = save_path / str(epoch)
    schedule = folder / "scheduler_state_dict.pt"
    # An old upstream writes no training_state for --save-best, but val_metrics after everything.
    return (
        (bool(state_of(folder)) or (folder / "val_metrics.json").exists())
        and _whole_safetensors(folder / "model.safetensors")
        and zipfile.is_zipfile(folder / "optimizer_state_dict.pt")
        and (not schedule.exists() or zipfile.is_zipfile(schedule))
    )


def _whole_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > 100_000_000:
                return False
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        return path.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_upstreams(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir() or not (target / STATE).is_file():
        return False  # a drafter that somebody put there has no state of training
    return all(_KNOWN.fullmatch(path.name) for path in target.iterdir())


def flush(folder: Path) -> None:
    """fsync of every file in `folder` and of its names."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def _label(save_path: Path, epoch: int, suffix: str) -> None:
    """Upstream's link for people, e.g. `epoch0_end` -> `0`."""
    with contextlib.suppress(OSError):  # nobody resumes from it
        for old in save_path.glob(f"epoch{epoch}_*"):
            if old.is_symlink():
                old.unlink()
        (save_path / f"epoch{epoch}_{suffix}").symlink_to(str(epoch))


def _all_ranks(trainer: Any, call: Any, *args: Any) -> Exception | None:
    """A call that ends in a barrier; an error on rank 0 is returned, and the barrier passed."""
    import torch.distributed as dist

    try:
        call(*args)
    except Exception as error:  # noqa: BLE001 - a full disk shows as several kinds
        if trainer.is_distributed:
            dist.barrier()
        return error
    return None
