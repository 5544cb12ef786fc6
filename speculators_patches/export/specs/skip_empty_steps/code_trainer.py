"""For `speculators/train/trainer.py`."""

import torch
import torch.distributed as dist


def _on_any_rank(flag: bool, device: torch.device | int | str) -> bool:
    """Whether *flag* holds on at least one rank; the same answer on all of them."""
    if not is_distributed():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def count_trained():
    trained_batches = 0


def look_at_the_mask(self, batch, local_step, trained_batches):
    # The batch is still on the CPU here, so the device is not waited for.
    trains = _on_any_rank(bool(batch["loss_mask"].any()), self.local_rank)
    trained_batches += trains
    if not trains:
        root_logger.warning(
            f"No trainable token in batch {local_step} on any rank; no update."
        )


def trained_on_nothing(remaining_steps, skip_steps, trained_batches):
    # Of an epoch that was resumed, the rest may well be empty.
    if remaining_steps > 0 and skip_steps == 0 and trained_batches == 0:
        raise RuntimeError(
            f"Epoch {epoch} trained on nothing: no batch had a trainable token. "
            "Check the warnings above, the vLLM server and the loss masks."
        )


def count_validated():
    validated_batches = 0


def validate_one(batch):
    has_tokens = bool(batch["loss_mask"].any())
    validated_batches += has_tokens


def accumulate(metrics, accumulated):
    for k, v in metrics.items():
        # A batch without trainable tokens has no share in a mean.
        value = v.float() if has_tokens else torch.zeros_like(v).float()
        acc = accumulated.get(k)
        accumulated[k] = value if acc is None else acc + value


def validated_nothing(num_batches, validated_batches):
    if num_batches > 0 and not _on_any_rank(validated_batches > 0, self.local_rank):
        raise RuntimeError(
            f"The validation of epoch {epoch} had no trainable token, so it says "
            "nothing about the drafter. Check the vLLM server and the samples at "
            "the end of the data set."
        )
