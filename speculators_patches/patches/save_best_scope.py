"""`--save-best` removes checkpoints of this run, and nothing else.

Upstream keeps the best checkpoint by deleting every other file and folder under `--save-path`:
other runs' checkpoints, `run.yaml`, notes, data. Here a checkpoint folder that a run creates gets a
marker with the run's id, and only folders with that marker go. A resumed run goes on under the id
of the checkpoint it loaded. A folder that already existed, an unmarked one (written by an unpatched
upstream, or cut off by a crash) and `interrupted` always stay. Something of the user's that is
named `checkpoint_best`, which upstream deletes too, is renamed.

0.5 and 0.6 have the defect as well and are not covered: there the sharded checkpointer overrides
the method, with a barrier of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_MODULE = "speculators.train.checkpointer"
_CLEANUP = f"{_MODULE}:BaseCheckpointer.cleanup_keep_only_best"
_LINK = f"{_MODULE}:BaseCheckpointer.update_best_symlink"
_SAVE_ONE = f"{_MODULE}:SingleGPUCheckpointer.save_checkpoint"
_SAVE_ALL = f"{_MODULE}:DistributedCheckpointer.save_checkpoint"
_LOAD_ONE = f"{_MODULE}:SingleGPUCheckpointer.load_model_state_dict"
_LOAD_ALL = f"{_MODULE}:DistributedCheckpointer.load_model_state_dict"
_RANGE = ">=0.7,<0.9.1"

PATCH = Patch(
    name="save_best_scope",
    defect="--save-best deletes everything else under --save-path, whoever made it.",
    needed=SpecifierSet(">=0.7"),
    targets=(
        Target(
            _MODULE,
            "BaseCheckpointer.cleanup_keep_only_best",
            fingerprints={_RANGE: "7d06893f038f9908"},
        ),
        Target(
            _MODULE,
            "BaseCheckpointer.update_best_symlink",
            fingerprints={_RANGE: "c553e6ce0b0638d4"},
        ),
        Target(
            _MODULE,
            "SingleGPUCheckpointer.save_checkpoint",
            fingerprints={_RANGE: "1304a0497edc90a0"},
        ),
        Target(
            _MODULE,
            "DistributedCheckpointer.save_checkpoint",
            fingerprints={_RANGE: "d096fe277d3b7b09"},
        ),
        Target(
            _MODULE,
            "SingleGPUCheckpointer.load_model_state_dict",
            fingerprints={_RANGE: "b5d64142a5561571"},
        ),
        Target(
            _MODULE,
            "DistributedCheckpointer.load_model_state_dict",
            fingerprints={_RANGE: "a35ddf715e2fd18b"},
        ),
        # It points previous_epoch elsewhere for one load, which must not change the run's id.
        Target(
            _MODULE,
            "BaseCheckpointer.load_model_state_dict_for_epoch",
            fingerprints={_RANGE: "2b333bd9cb054ad4"},
            observed=True,
        ),
    ),
    upstream="no issue found; --save-best was asked for in #307",
    fixed_in=None,
    remove_when="cleanup_keep_only_best deletes only what its run wrote",
    proof="tests/faults/test_save_best_scope.py::test_only_the_run_s_own_checkpoints_go",
    tested=("0.7.0.2", "0.8.1", "0.9.0"),
)

MARKER = ".made_by_run"
logger = logging.getLogger("speculators")

_save_one: Any = None
_save_all: Any = None
_load_one: Any = None
_load_all: Any = None
_update_link: Any = None


def save_one(self: Any, model: Any, optimizer: Any, epoch: int | str, *rest: Any) -> None:
    """Upstream's, and the marker in a folder that did not exist before."""
    _save_and_mark(_save_one, self, model, optimizer, epoch, *rest)


def save_all(self: Any, model: Any, optimizer: Any, epoch: int | str, *rest: Any) -> None:
    """Upstream's for sharded models; a collective call on every rank."""
    _save_and_mark(_save_all, self, model, optimizer, epoch, *rest)


def load_one(self: Any, *args: Any, **kwargs: Any) -> None:
    """Upstream's; the run goes on under the id of the checkpoint that it resumes from."""
    _load_one(self, *args, **kwargs)
    _adopt(self)


def load_all(self: Any, *args: Any, **kwargs: Any) -> None:
    """As `load_one`."""
    _load_all(self, *args, **kwargs)
    _adopt(self)


def cleanup_keep_only_best(self: Any, best_epoch: int) -> None:
    """Removes this run's epoch folders other than the best, and links that then lead nowhere.

    Called on every rank; rank 0 acts and the others wait for it.

    Raises:
        FileNotFoundError: the best epoch's folder does not exist.
        RuntimeError: a folder could not be deleted; the text names it.
    """
    try:
        if _rank() == 0:
            _keep_only(self, best_epoch)
    finally:
        _barrier()


def update_best_symlink(self: Any, epoch: int) -> None:
    """Upstream's, after moving aside whatever else bears the link's name. Called on every rank."""
    best: Path = self.best_path()
    if _rank() == 0 and best.exists() and not best.is_symlink():
        kept = next(
            path for n in itertools.count(1) if not (path := Path(f"{best}.kept{n}")).exists()
        )
        best.rename(kept)
        logger.warning(f"{best} is not this run's link; renamed it to {kept.name}")
    _update_link(self, epoch)


def _keep_only(checkpointer: Any, best_epoch: int) -> None:
    best: Path = checkpointer.path / str(best_epoch)
    if not best.is_dir():
        raise FileNotFoundError(f"Best epoch dir does not exist: {best}")
    removed = []
    for folder in sorted(checkpointer.path.iterdir()):
        if folder != best and _is_own(checkpointer, folder):
            try:
                shutil.rmtree(folder)
            except OSError as error:
                raise RuntimeError(f"Failed to delete {folder}: {error}") from error
            removed.append(folder.name)
    for link in checkpointer.path.iterdir():
        if link.is_symlink() and str(link.readlink()) in removed:
            link.unlink()
    if removed:
        logger.info(f"--save-best removed {', '.join(removed)} of {checkpointer.path}")


def _is_own(checkpointer: Any, folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir() or not folder.name.isdecimal():
        return False
    return _id_in(folder) == _run_id(checkpointer)


def _id_in(folder: Path) -> str | None:
    try:
        return (folder / MARKER).read_text().strip() or None
    except OSError:
        return None


def _run_id(checkpointer: Any) -> str:
    if not hasattr(checkpointer, "_patches_run_id"):
        checkpointer._patches_run_id = uuid.uuid4().hex
    run_id: str = checkpointer._patches_run_id
    return run_id


def _adopt(checkpointer: Any) -> None:
    folder = checkpointer.prev_path
    # Not while load_model_state_dict_for_epoch borrows another epoch's weights.
    if folder is not None and folder.name == str(checkpointer.previous_epoch):
        run_id = _id_in(folder)
        if run_id is not None:
            checkpointer._patches_run_id = run_id


def _save_and_mark(save: Any, checkpointer: Any, model: Any, optimizer: Any, epoch: Any,
                   *rest: Any) -> None:  # fmt: skip
    folder: Path = checkpointer.path / str(epoch)
    is_new = not folder.exists()
    save(checkpointer, model, optimizer, epoch, *rest)
    if _rank() == 0 and is_new:
        # Without a marker the folder only stays longer; that is no reason to end a run.
        with contextlib.suppress(OSError):
            (folder / MARKER).write_text(_run_id(checkpointer) + "\n")


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _barrier() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _save_one, _save_all, _load_one, _load_all, _update_link
    _update_link = originals[_LINK]
    _save_one, _save_all = originals[_SAVE_ONE], originals[_SAVE_ALL]
    _load_one, _load_all = originals[_LOAD_ONE], originals[_LOAD_ALL]
    return {
        _CLEANUP: cleanup_keep_only_best,
        _LINK: update_best_symlink,
        _SAVE_ONE: save_one,
        _SAVE_ALL: save_all,
        _LOAD_ONE: load_one,
        _LOAD_ALL: load_all,
    }
