"""For `speculators/models/eagle3/metrics.py` and `speculators/models/metrics.py`."""

import torch


def judged_drafts(loss_mask, s_loss_mask, ttt_step):
    # A draft is judged if the reply holds all tokens from its start to its target.
    judged = s_loss_mask if loss_mask is None else consecutive(loss_mask, ttt_step + 1)


def conditional_total(prev_correct, loss_mask):
    judged = prev_correct
    if loss_mask is not None:
        judged = torch.logical_and(prev_correct, loss_mask)
    cond_total = judged.sum().float()
