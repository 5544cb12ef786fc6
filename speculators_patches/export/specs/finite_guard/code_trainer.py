"""For `speculators/train/trainer.py`."""

import math

import torch
import torch.distributed as dist


def constant():
    # A run ends after this many steps in a row with a loss or gradient of NaN or inf.
    _MAX_NON_FINITE_STEPS = 3


def _is_finite(loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
    """Whether *loss* and *grad_norm* are finite on every rank."""
    if hasattr(grad_norm, "full_tensor"):  # FSDP: a DTensor of partial norms
        grad_norm = grad_norm.full_tensor()
    ok = torch.isfinite(loss.detach()) & torch.isfinite(grad_norm)
    flag = ok.reshape(1).to(torch.int32)
    if is_distributed():
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def count(self):
    # In a row, over the ends of epochs too.
    self._non_finite_steps = 0


def clip(self):
    grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)


def judge(self, loss, grad_norm):
    finite = _is_finite(loss, grad_norm)
    self._non_finite_steps = 0 if finite else self._non_finite_steps + 1
    if not finite:
        root_logger.warning(
            f"Loss or gradient of step {self.global_step} is not finite; "
            "no update."
        )
    if self._non_finite_steps >= _MAX_NON_FINITE_STEPS:
        raise RuntimeError(
            f"Loss or gradient was not finite in {self._non_finite_steps} "
            "steps in a row. The weights are those from before; check the "
            "hidden states and the learning rate."
        )


def never_best(val_metrics, epoch):
    if not math.isfinite(val_metrics["loss_epoch"]):
        root_logger.warning(
            f"Validation loss of epoch {epoch} is {val_metrics['loss_epoch']}; "
            "not a candidate for checkpoint_best."
        )
        return
