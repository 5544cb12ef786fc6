"""For `speculators/train/checkpointer.py`."""

import shutil
from pathlib import Path


def move_aside(best_path):
    kept = _unused_name(best_path)
    best_path.rename(kept)
    logger.warning(f"{best_path} is not a link; renamed it to {kept.name}")


def cleanup_keep_only_best(self, best_epoch):
    keep_dir = self.path / str(best_epoch)
    if not keep_dir.is_dir():
        raise FileNotFoundError(f"Best epoch dir does not exist: {keep_dir}")

    removed = set()
    for child in self.path.iterdir():
        is_epoch = child.name.isdecimal() and child.is_dir()
        if not is_epoch or child.is_symlink() or child == keep_dir:
            continue
        try:
            shutil.rmtree(child)
        except OSError as exc:
            raise RuntimeError(f"Failed to delete {child}") from exc
        removed.add(child.name)

    for child in self.path.iterdir():
        if child.is_symlink() and str(child.readlink()) in removed:
            child.unlink()


def _unused_name(path: Path) -> Path:
    """*path* with the first suffix ``.kept<n>`` that nothing has yet."""
    number = 1
    while (kept := path.with_name(f"{path.name}.kept{number}")).exists():
        number += 1
    return kept
