"""A drafter that is always right, over two replies of 20 tokens."""

import sys

import torch

from speculators.losses.eager import kl_div_loss
from speculators.models.eagle3.metrics import compute_metrics

mask = torch.zeros(1, 80, dtype=torch.bool)
mask[:, 10:30] = mask[:, 50:70] = True
targets = torch.randn(1, 80, 16)
correct = mask.clone()
seen = []
for step in range(3):
    logits = torch.cat([targets[:, step:], torch.zeros(1, step, 16)], dim=1)
    loss = {"kl_div": (kl_div_loss, 1.0)}
    _, m = compute_metrics(logits, targets, mask, correct, step, 1.0, loss_config=loss)
    for name in (f"full_acc_{step}", f"cond_acc_{step}"):
        seen.append((name, float(m[f"{name}_sum"] / m[f"{name}_total"])))
text = ", ".join(f"{name} {value:.3f}" for name, value in seen)
if any(value != 1 for _, value in seen):
    print(f"DEFECT: {text}")
    sys.exit(1)
print(f"OK: {text}")
