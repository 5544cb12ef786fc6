"""A NaN or an infinity reaches neither a weight, nor a checkpoint, nor the name "best".

Upstream checks hidden states that vLLM has just generated, but not cached ones, and nothing after
that: one non-finite batch makes every weight NaN, the run ends with exit code 0, and a NaN
validation loss counts as an improvement (`nan >= best` is false), after which `--save-best` deletes
the good checkpoint.

- A step whose loss or gradient norm is not finite on any rank is skipped on all (no optimizer, no
  schedule) and counted; after SPECULATORS_PATCHES_MAX_NONFINITE_STEPS in a row (default 3) the run
  stops (`stops.RunStopped`) with the weights from before.
- Trained weights and optimizer states are checked before upstream writes a checkpoint; other
  writers call `finite.assert_finite`.
- A validation loss that is not finite never makes a "best".
- A cached sample with a non-finite value is one unavailable sample, named in the log.

The check of a step reads the gradients once and waits for the device, as upstream does on every
logged step. A run that stays finite is bitwise the same with and without this patch. 0.7 and older
have the defect too and are not covered: 0.7 is where the trainer got these methods, 0.8 where the
data set got a way to say that a sample is unavailable.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches import finite, stops
from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

_TRAINER = "speculators.train.trainer:Trainer"
_SETUP = f"{_TRAINER}.setup_model"
_STEP = f"{_TRAINER}._optimizers_step"
_SCHEDULE = f"{_TRAINER}._schedulers_step"
_SAVE = f"{_TRAINER}.maybe_save_checkpoint"
_BEST = f"{_TRAINER}.maybe_update_best"
_READ = "speculators.train.data:ArrowDataset._get_raw_data"
_MAIN = "speculators.train.cli:main"
_BOTH = ">=0.8.1,<0.9.1"

PATCH = Patch(
    name="finite_guard",
    defect="One NaN in a cached hidden state or a loss makes every weight NaN; the run ends as a "
    "success, and a NaN validation loss becomes the best one.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            "speculators.train.trainer",
            "Trainer.setup_model",
            fingerprints={"==0.8.1": "c85fdd67d664d3a6", "==0.9.0": "c12d2129fb77ec15"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer._optimizers_step",
            fingerprints={_BOTH: "a9311dfeb99d44db"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer._schedulers_step",
            fingerprints={_BOTH: "f90011e54303a839"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.maybe_save_checkpoint",
            fingerprints={_BOTH: "f7f97ea65f4f6790"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.maybe_update_best",
            fingerprints={_BOTH: "d16b74a17c0dc0ec"},
        ),
        Target(
            "speculators.train.data",
            "ArrowDataset._get_raw_data",
            fingerprints={"==0.8.1": "86fea1bf97ba7ea9", "==0.9.0": "895579f24b1fd49c"},
        ),
        Target(
            "speculators.train.cli",
            "main",
            fingerprints={"==0.8.1": "b340c969fb545e14", "==0.9.0": "00e441188600f50e"},
        ),
        # Clips, then calls _optimizers_step and _schedulers_step once each, in this order.
        Target(
            "speculators.train.trainer",
            "Trainer.train_epoch",
            fingerprints={"==0.8.1": "d515016800f38939", "==0.9.0": "461565dfd05aa163"},
            observed=True,
        ),
    ),
    upstream="https://github.com/vllm-project/speculators/issues/1120",
    fixed_in=None,
    remove_when="#1120 ships and covers cached samples, the best checkpoint and saving",
    proof="tests/faults/test_finite_guard.py::test_a_nan_reaches_no_weight",
    tested=("0.8.1", "0.9.0"),
)

logger = logging.getLogger("speculators")

_setup_model: Any = None
_optimizers_step: Any = None
_schedulers_step: Any = None
_maybe_save_checkpoint: Any = None
_maybe_update_best: Any = None
_get_raw_data: Any = None
_main: Any = None
_guard: Guard | None = None  # of the Trainer built last in this process


class NotFinite(stops.RunStopped):
    """Several steps in a row had a non-finite loss or gradient."""


class Guard:
    """Judges each step of one trainer and counts the bad ones."""

    def __init__(self) -> None:
        self.limit = stops.setting("SPECULATORS_PATCHES_MAX_NONFINITE_STEPS", 3, 1, 10**9)
        self.loss: torch.Tensor | None = None  # of the step in hand, [] on the device
        self.in_a_row = 0
        self.skipped = 0
        self.is_skipping = False

    def remember_loss(self, module: Any, _args: Any, output: Any) -> None:
        """Forward hook."""
        if module.training and isinstance(output, tuple) and len(output) == 3:
            self.loss = output[1].detach()

    def judge(self, trainer: Any) -> bool:
        """True if the step in hand is fit to be taken; the same on every rank.

        Raises:
            NotFinite: it is one too many in a row.
        """
        self.is_skipping = not is_finite_step(self.loss, trainer)
        if not self.is_skipping:
            self.in_a_row = 0
            return True
        self.in_a_row += 1
        self.skipped += 1
        what = f"the loss or the gradient of step {trainer.global_step} is not finite"
        logger.warning(f"{what}: step skipped ({self.skipped} so far, {self.in_a_row} in a row)")
        if self.in_a_row >= self.limit:
            raise NotFinite(
                f"{what}, as in {self.in_a_row - 1} steps before it; the weights are those from "
                "before them. Look for values out of range in the newest hidden states, lower the "
                "learning rate, or set SPECULATORS_PATCHES_MAX_NONFINITE_STEPS"
            )
        return False


def is_finite_step(loss: torch.Tensor | None, trainer: Any) -> bool:
    """Looks at the loss and at the gradients after clipping, on all ranks.

    Clipping hides a norm that overflowed: it multiplies every gradient by 0. So a gradient of
    exactly 0 under a loss that is not 0 is not finite either.
    """
    import torch
    import torch.distributed as dist

    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    bad = ~torch.isfinite(norm)
    if loss is not None:
        loss = loss.to(norm.device)
        bad = bad | ~torch.isfinite(loss) | ((norm == 0) & (loss != 0))
    flag = bad.to(torch.int32).reshape(1)
    if trainer.is_distributed:
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return not flag.item()


def setup_model(self: Any) -> None:
    """Upstream's, then a guard for this trainer."""
    global _guard
    _setup_model(self)
    _guard = Guard()
    self.model.register_forward_hook(_guard.remember_loss)


def optimizers_step(self: Any) -> None:
    """Upstream's, unless the step in hand is not finite.

    Raises:
        NotFinite: too many in a row.
    """
    if _guard is None or _guard.judge(self):
        _optimizers_step(self)


def schedulers_step(self: Any) -> None:
    """Upstream's, unless `optimizers_step` skipped."""
    if _guard is None or not _guard.is_skipping:
        _schedulers_step(self)


def maybe_save_checkpoint(self: Any, epoch: int | str, local_step: int = 0) -> None:
    """Upstream's, of a finite state.

    Raises:
        finite.NonFiniteState: before anything is written.
    """
    _check(self, epoch)
    _maybe_save_checkpoint(self, epoch, local_step)


def maybe_update_best(self: Any, epoch: int, val_metrics: dict[str, float] | None) -> None:
    """Upstream's, of a finite validation loss and, where it saves, a finite state.

    Raises:
        finite.NonFiniteState: before anything is written.
    """
    loss = (val_metrics or {}).get("loss_epoch")
    if loss is not None and not math.isfinite(loss):
        logger.warning(f"the validation loss of epoch {epoch} is {loss}: not a candidate for best")
        return
    if self.config.save_best:
        _check(self, epoch)
    _maybe_update_best(self, epoch, val_metrics)


def _check(trainer: Any, epoch: int | str) -> None:
    where = trainer.checkpointer.path / str(epoch)
    finite.assert_finite(finite.trained_state(trainer.model, trainer.optimizers), str(where))


def get_raw_data(self: Any, index: int) -> Any:
    """Upstream's sample, or `SampleUnavailable` with the file's name if a value is not finite."""
    sample = _get_raw_data(self, index)
    if isinstance(sample, dict):
        bad = finite.nonfinite(
            (key, sample[key]) for key in ("hidden_states", "verifier_last_hidden_states")
        )
        if bad:
            from speculators.train.recovery import SampleUnavailable

            reason = f"{cached_file(self, index)}: non-finite values in {' and '.join(bad)}"
            logger.warning(f"sample {index} is left out: {reason}")
            return SampleUnavailable(reason=reason, counts_as_failure=True)
    return sample


def cached_file(dataset: Any, index: int) -> str:
    """What to call the cached hidden states of row `index` in a message."""
    name = f"hs_{dataset._map_to_file_idx(index)}.safetensors"
    folder = getattr(dataset.transfer, "hidden_states_path", None)
    return str(folder / name) if folder is not None else name


def main(*args: Any, **kwargs: Any) -> Any:
    """Upstream's; a stop is one sentence and exit code 1."""
    return stops.say_and_exit(_main, *args, **kwargs)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _setup_model, _optimizers_step, _schedulers_step, _guard
    global _maybe_save_checkpoint, _maybe_update_best, _get_raw_data, _main
    _guard = None
    _setup_model, _get_raw_data, _main = originals[_SETUP], originals[_READ], originals[_MAIN]
    _optimizers_step, _schedulers_step = originals[_STEP], originals[_SCHEDULE]
    _maybe_save_checkpoint, _maybe_update_best = originals[_SAVE], originals[_BEST]
    return {
        _SETUP: setup_model,
        _STEP: optimizers_step,
        _SCHEDULE: schedulers_step,
        _SAVE: maybe_save_checkpoint,
        _BEST: maybe_update_best,
        _READ: get_raw_data,
        _MAIN: main,
    }
