"""Models and prompts that settings name by a path of this machine, for machines that lack them."""

from __future__ import annotations

import os
from pathlib import Path

from recipes.config import ConfigError, Recipe

# Settings that may name a file or folder.
_PATHS = ("body", "draft_start", "prompts", "bench_prompts", "bench_mtp", "bench_dflash")


def paths(recipe: Recipe) -> dict[str, Path]:
    """Setting -> absolute path, of those that name a path and no hub id; links in it are kept."""
    found = {}
    for name in _PATHS:
        value = getattr(recipe, name)
        if value and (Path(value).is_absolute() or Path(value).exists()):
            found[name] = Path(os.path.normpath(Path(value).absolute()))
    return found


def check_copied(name: str, path: Path, launcher: str) -> None:
    """What another machine gets as a copy, or as a mount, is whole there.

    Raises:
        ConfigError: it holds links to files outside of itself.
    """
    if not path.is_dir():
        return
    top = path.resolve()
    for one in sorted(path.rglob("*")):
        if one.is_symlink() and not one.resolve().is_relative_to(top):
            raise ConfigError(
                f"{name}={path} holds links to files outside of it, as the hub's cache does "
                f"({one.relative_to(path)}), and {launcher} would take the links alone: name the "
                "model by its hub id, or a copy made with cp -rL."
            )
