"""For `speculators/models/eagle3/core.py` and the schema."""

from pydantic import Field


def masked(self, mask_unsayable_positions, loss_mask, input_ids, sayable):
    if mask_unsayable_positions and not (loss_mask is None or self.t2d is None):
        kept = sayable(input_ids, self.t2d)
        loss_mask = loss_mask * kept.to(loss_mask.dtype)


def setting():
    mask_unsayable_positions: bool = Field(
        default=False,
        description="EAGLE-3 with a pruned draft vocabulary: leave positions out of "
        "the loss whose next token is outside that vocabulary.",
    )
