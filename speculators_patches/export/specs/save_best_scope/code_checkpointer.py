"""For `speculators/train/checkpointer.py`."""

import shutil
from pathlib import Path


def remember_resumed(self):
    # Folders that --save-best may delete: saved or resumed from by this run.
    self._own_epochs = {str(self.previous_epoch)} - {"-1"}


def remember_saved(self, epoch):
    self._own_epochs.add(str(epoch))


def move_aside(best_path):
    kept = _unused_name(best_path)
    best_path.rename(kept)
    logger.warning(f"{best_path} is not a link; renamed it to {kept.name}")


def cleanup_keep_only_best(self, best_epoch):
    keep_dir = self.path / str(best_epoch)
    if not keep_dir.is_dir():
        raise FileNotFoundError(f"Best epoch dir does not exist: {keep_dir}")

    doomed = self._own_epochs - {str(best_epoch)}
    for name in sorted(doomed):
        folder = self.path / name
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            shutil.rmtree(folder)
        except OSError as exc:
            raise RuntimeError(f"Failed to delete {folder}") from exc
    self._own_epochs -= doomed

    for child in self.path.iterdir():
        if child.is_symlink() and str(child.readlink()) in doomed:
            child.unlink()


def _unused_name(path: Path) -> Path:
    """*path* with the first suffix ``.kept<n>`` that nothing has yet."""
    number = 1
    while (kept := path.with_name(f"{path.name}.kept{number}")).exists():
        number += 1
    return kept
