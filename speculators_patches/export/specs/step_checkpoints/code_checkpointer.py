"""For `speculators/train/checkpointer.py`."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import torch

# ---- full precision ----


def trained_weights_path(self, epoch: int | str):
    return self.path / str(epoch) / "trained_weights.pt"


def _load_trained_weights(self, device: str) -> dict[str, torch.Tensor]:
    """The weights that trained, in their own precision; {} in older checkpoints."""
    path = self.trained_weights_path(self.previous_epoch)
    if not path.exists():
        return {}
    return torch.load(path, weights_only=True, map_location=device)


def _trained_weights(
    model: torch.nn.Module, state_dict: dict
) -> dict[str, torch.Tensor]:
    """What of *state_dict* trains, as it is, in host memory."""
    return {
        name: state_dict[name].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_trained(self, raw_model, epoch):
    torch.save(
        _trained_weights(raw_model, raw_model.state_dict()),
        self.trained_weights_path(epoch),
    )


def gathered_trained(model, model_state_dict):
    # The full state dict is on rank 0 only.
    trained = _trained_weights(model, model_state_dict) if get_rank() == 0 else {}


# ---- atomic publishing ----


def start_clean(self):
    self._staged: dict[str, Path] = {}
    self._clean_up_aborted_saves()


def folder(self, epoch: int | str) -> Path:
    """Where the files of *epoch* are, or are being written."""
    return self._staged.get(str(epoch), self.path / str(epoch))


@contextmanager
def publishing(self, epoch: int | str):
    """Files of *epoch* written in this block appear at its end, all or none.

    Every rank enters it; rank 0 publishes.
    """
    staged = self.path / f".{epoch}.publishing"
    if get_rank() == 0:
        shutil.rmtree(staged, ignore_errors=True)
    self._staged[str(epoch)] = staged
    try:
        yield
    except BaseException:
        if get_rank() == 0:
            shutil.rmtree(staged, ignore_errors=True)
        raise
    finally:
        del self._staged[str(epoch)]
    self._publish(staged, self.path / str(epoch))


@_rank0_only
def _publish(self, staged: Path, target: Path) -> None:
    if not staged.exists():
        return
    _flush(staged)
    old = self.path / f".{target.name}.replaced"
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    staged.rename(target)
    _flush(self.path)
    shutil.rmtree(old, ignore_errors=True)


@_rank0_only
def _clean_up_aborted_saves(self) -> None:
    """Put right what a process that was killed during a save has left."""
    if not self.path.exists():
        return
    for old in self.path.glob(".*.replaced"):
        target = self.path / old.stem.removeprefix(".")
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for staged in self.path.glob(".*.publishing"):
        shutil.rmtree(staged, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Write a folder and the files in it through to the disk."""
    for path in [*folder.iterdir(), folder]:
        if path.is_file() or path == folder:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
