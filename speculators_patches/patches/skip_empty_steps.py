"""A batch without a single trainable token changes nothing, and too many of them stop the run.

When every sample of a batch failed (vLLM timed out, the cache is torn) upstream trains on padding:
loss and gradients are exactly 0, but the optimizers step all the same along their momentum, which
Muon brings back to full length, weight decay pulls, the schedule advances, and the metrics take in
a loss of 0. With no data at all a run ends with exit code 0 and a "best" checkpoint at loss 0.0.

Here the optimizers and the schedule rest when no rank has a trainable token. A rank that alone has
none takes no part in the metrics, and the others' gradient is divided by the ranks that have data.
`global_step` still counts batches, so cursors and `--max-steps` mean what they meant.

The run stops (`stops.RunStopped`, one sentence, exit code 1) before the next step when
- the samples lost in the last steps exceed a share of all: SPECULATORS_PATCHES_MAX_LOST_SHARE
  (default 0.02) over SPECULATORS_PATCHES_LOST_WINDOW steps (default 500); early in a run as soon as
  that share of what the window will hold is lost. With `--on-missing skip` or `warn` files that are
  not there are the user's choice and only failures count;
- an epoch trained nothing, or a validation saw nothing.

A run in which nothing is lost is bitwise the same with and without this patch. 0.7 and older have
the defect too and are not covered: they have no place where the trainer meets a batch before it
uses it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches import patience, stops
from speculators_patches.registry import Patch, Target

_TRAINER = "speculators.train.trainer:Trainer"
_SETUP = f"{_TRAINER}.setup_model"
_STEP = f"{_TRAINER}._optimizers_step"
_SCHEDULE = f"{_TRAINER}._schedulers_step"
_VALIDATE = f"{_TRAINER}.val_epoch"
_CONSUME = "speculators.train.recovery:BatchRecoveryCoordinator.consume"
_NORMALIZE = "speculators.train.utils:normalize_counted_metrics"
_MAIN = "speculators.train.cli:main"
_BOTH = ">=0.8.1,<0.9.1"

PATCH = Patch(
    name="skip_empty_steps",
    defect="A batch whose samples all failed is a full optimizer step along stale momentum and "
    "counts as loss 0; a run without any data ends as a success.",
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
            "Trainer.val_epoch",
            fingerprints={"==0.8.1": "74dc28163b0676b2", "==0.9.0": "7eb742f20743e683"},
        ),
        Target(
            "speculators.train.recovery",
            "BatchRecoveryCoordinator.consume",
            fingerprints={_BOTH: "eb1f526c79ff5b3a"},
        ),
        Target(
            "speculators.train.utils",
            "normalize_counted_metrics",
            fingerprints={_BOTH: "9c0cd8eba69b397e"},
        ),
        Target(
            "speculators.train.cli",
            "main",
            fingerprints={"==0.8.1": "b340c969fb545e14", "==0.9.0": "00e441188600f50e"},
        ),
        # consume, model, backward, _optimizers_step, _schedulers_step: once each, in this order.
        Target(
            "speculators.train.trainer",
            "Trainer.train_epoch",
            fingerprints={"==0.8.1": "d515016800f38939", "==0.9.0": "461565dfd05aa163"},
            observed=True,
        ),
        # Says what is in a batch: loss_mask, document_ids, error_records, recovery metadata.
        Target(
            "speculators.train.data",
            "CollateFn.__call__",
            fingerprints={_BOTH: "8704470327a5831b"},
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream's trainer does not step on a batch without trainable tokens",
    proof="tests/faults/test_skip_empty_steps.py::test_empty_batches_do_not_move_weights",
    tested=("0.8.1", "0.9.0"),
)

logger = logging.getLogger("speculators")

_setup_model: Any = None
_optimizers_step: Any = None
_schedulers_step: Any = None
_val_epoch: Any = None
_consume: Any = None
_normalize: Any = None
_main: Any = None
_run: Run | None = None  # of the Trainer built last in this process


class DataLost(stops.RunStopped):
    """Too many samples could not be had."""


@dataclass(frozen=True)
class Seen:
    """What one rank's batch holds: trainable tokens, samples, and samples lost on the way."""

    tokens: int
    samples: int
    lost: int


class Run:
    """What a trainer's batches have held so far.

    Args:
        group: process group on CPU tensors over all ranks, None for one process.
        scale: whether a gradient averaged over ranks may be rescaled (not under sequence
            parallelism, where one sample is spread over ranks).
        by_choice: missing files are not losses.
    """

    def __init__(self, group: Any, scale: bool, by_choice: bool) -> None:
        self.share = stops.setting("SPECULATORS_PATCHES_MAX_LOST_SHARE", 0.02, 0.0, 1.0)
        self.window = stops.setting("SPECULATORS_PATCHES_LOST_WINDOW", 500, 1, 10**9)
        self.by_choice = by_choice
        self.step_is_empty = False
        self.loss_scale = 1.0
        self.skipped = 0
        self._group, self._scale = group, scale
        self._recent: deque[tuple[int, int]] = deque(maxlen=self.window)  # (samples, lost) a step
        self._steps = self._steps_with_data = 0  # since the last validation
        self._validated = 0

    def train(self, seen: Seen) -> None:
        """Takes in the batch of the next step; all ranks come to the same result."""
        have_data, samples, lost, ranks = self._sum(seen.tokens > 0, seen.samples, seen.lost, 1)
        self.step_is_empty = have_data == 0
        self.loss_scale = ranks / have_data if self._scale and have_data else 1.0
        self._steps += 1
        self._steps_with_data += have_data > 0
        if self.step_is_empty:
            self.skipped += 1
            logger.warning(
                f"no trainable token in this batch: step skipped ({self.skipped} so far)"
            )
        self._recent.append((samples + lost, lost))
        self._stop_if_too_much_is_lost()

    def validate(self, seen: Seen) -> None:
        """Takes in one validation batch."""
        self._validated += seen.tokens

    def before_validation(self, epoch: int) -> None:
        """Raises `DataLost` if the epoch that just ended trained nothing."""
        steps, with_data = self._steps, self._steps_with_data
        self._steps = self._steps_with_data = self._validated = 0
        if steps and not with_data:
            raise DataLost(
                f"none of the {steps} steps of epoch {epoch} had a trainable token; look at the "
                "warnings above, and check the vLLM server, --data-path and the loss masks"
            )

    def after_validation(self, epoch: int) -> None:
        """Raises `DataLost` if no rank's validation batches held a trainable token."""
        if self._sum(self._validated)[0] == 0:
            raise DataLost(
                f"the validation of epoch {epoch} had no trainable token, so it says nothing about "
                "the drafter; check the vLLM server and the samples at the end of --data-path"
            )

    def _stop_if_too_much_is_lost(self) -> None:
        steps = len(self._recent)
        total = sum(all_ for all_, _ in self._recent)
        lost = sum(lost for _, lost in self._recent)
        if lost * steps > self.share * total * self.window:
            raise DataLost(
                f"{lost} of {total} samples of the last {steps} steps could not be had, more than "
                f"{self.share:.1%} of what {self.window} steps hold; look at the warnings above, "
                "check the vLLM server and resume, or set SPECULATORS_PATCHES_MAX_LOST_SHARE"
            )

    def _sum(self, *numbers: int) -> list[int]:
        if self._group is None:
            return [int(number) for number in numbers]
        import torch
        import torch.distributed as dist

        # CPU tensors in a gloo group: no synchronisation with the accelerator.
        total = torch.tensor([int(number) for number in numbers])
        dist.all_reduce(total, group=self._group)
        return [int(number) for number in total.tolist()]


def setup_model(self: Any) -> None:
    """Upstream's, then the books for this trainer; a collective call on every rank."""
    global _run
    _setup_model(self)
    group = scale = None
    if self.is_distributed:
        import torch.distributed as dist
        from speculators.train import distributed as topology

        is_gloo = dist.get_backend() == "gloo"
        # Where a rank that has its data waits for one that waits for its producer.
        group = (
            dist.group.WORLD
            if is_gloo
            else dist.new_group(backend="gloo", timeout=patience.group_timeout())
        )
        scale = topology.get_dp_size() == dist.get_world_size()
    on_missing = getattr(getattr(self.train_loader, "dataset", None), "on_missing", None)
    _run = Run(group, bool(scale), by_choice=on_missing in ("skip", "warn"))
    self.model.register_forward_hook(leave_out_empty, with_kwargs=True)


def leave_out_empty(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook: a batch without trainable tokens has sums and totals of 0 in every metric.

    Works on the device, without a synchronisation.
    """
    import torch

    mask = kwargs.get("loss_mask")
    if mask is None or not isinstance(output, tuple) or len(output) != 3:
        return None
    draft_tokens, loss, metrics = output
    has_tokens = mask.any()
    metrics = {
        name: torch.where(has_tokens, value, torch.zeros_like(value))
        if isinstance(value, torch.Tensor)
        else value
        for name, value in metrics.items()
    }
    if module.training and _run is not None and _run.loss_scale != 1.0:
        loss = loss * _run.loss_scale
    return draft_tokens, loss, metrics


def consume(self: Any, batch: dict[str, Any], *, synchronize: bool = False) -> None:
    """Upstream's, then the batch is entered in the books.

    Raises:
        DataLost: too large a share of the recent samples is lost.
    """
    seen = look_at(batch, _run.by_choice) if _run is not None else None
    _consume(self, batch, synchronize=synchronize)
    if _run is not None and seen is not None:
        if self.phase == "training":
            _run.train(seen)
        else:
            _run.validate(seen)


def look_at(batch: Mapping[str, Any], by_choice: bool = False) -> Seen:
    """What a collated batch (tensors [1, tokens] on the CPU) holds, before upstream consumes it."""
    from speculators.train.recovery import RECOVERY_METADATA_KEY

    mask = batch.get("loss_mask")
    documents = batch.get("document_ids")
    tokens = 1 if mask is None else int(mask.any())
    samples = tokens if documents is None else int(documents.max()) + 1
    if by_choice:
        lost = getattr(batch.get(RECOVERY_METADATA_KEY), "failure_count", 0)
    else:
        lost = int(batch.get("error_records", 0))
    return Seen(tokens, samples, lost)


def optimizers_step(self: Any) -> None:
    """Upstream's, unless no rank has a trainable token."""
    if _run is None or not _run.step_is_empty:
        _optimizers_step(self)


def schedulers_step(self: Any) -> None:
    """As `optimizers_step`."""
    if _run is None or not _run.step_is_empty:
        _schedulers_step(self)


def val_epoch(self: Any, epoch: int) -> dict[str, float] | None:
    """Upstream's metrics over the batches that hold something.

    Raises:
        DataLost: the epoch trained nothing, or the validation held nothing.
    """
    if _run is not None:
        _run.before_validation(epoch)
    metrics: dict[str, float] | None = _val_epoch(self, epoch)
    if _run is not None and metrics is not None:
        _run.after_validation(epoch)
    return metrics


def normalize_counted_metrics(metrics: dict[str, float], world_size: int = 1) -> dict[str, float]:
    """Upstream's means of `<name>_sum` over `<name>_total`; a mean over nothing is left out."""
    for total in [name for name in metrics if name.endswith("_total")]:
        counted = total.removesuffix("_total") + "_sum"
        if counted in metrics and metrics[total] <= 0:
            del metrics[total], metrics[counted]
    means: dict[str, float] = _normalize(metrics, world_size)
    return means


def main(*args: Any, **kwargs: Any) -> Any:
    """Upstream's; a stop is one sentence and exit code 1."""
    return stops.say_and_exit(_main, *args, **kwargs)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _setup_model, _optimizers_step, _schedulers_step, _val_epoch
    global _consume, _normalize, _main, _run
    _run = None
    _setup_model, _val_epoch = originals[_SETUP], originals[_VALIDATE]
    _optimizers_step, _schedulers_step = originals[_STEP], originals[_SCHEDULE]
    _consume, _normalize, _main = originals[_CONSUME], originals[_NORMALIZE], originals[_MAIN]
    return {
        _SETUP: setup_model,
        _STEP: optimizers_step,
        _SCHEDULE: schedulers_step,
        _VALIDATE: val_epoch,
        _CONSUME: consume,
        _NORMALIZE: normalize_counted_metrics,
        _MAIN: main,
    }
