"""Two drafters with the same best tokens, of which one is too sure of them: what
validation says of them, at a temperature of 1."""

import sys

import torch

from speculators.losses.eager import kl_div_loss
from speculators.models.eagle3 import metrics

torch.manual_seed(0)
targets = torch.randn(1, 4000, 16)
ids = torch.distributions.Categorical(logits=targets[0, :-1]).sample()
ids = torch.cat([torch.zeros(1, dtype=torch.long), ids])[None]
mask = torch.ones(1, 4000, dtype=torch.bool)
seen = []
for logits in (targets, 8 * targets):
    loss = {"kl_div": (kl_div_loss, 1.0)}
    _, m = metrics.compute_metrics(
        logits, targets, mask, mask.clone(), 0, 1.0, loss_config=loss
    )
    seen.append(f"full_acc_0 {float(m['full_acc_0_sum'] / m['full_acc_0_total']):.3f}")
    if hasattr(metrics, "expected_acceptance"):
        m = metrics.expected_acceptance(
            [logits], targets, ids, mask, t2d=None, temperature=1.0
        )
        seen.append(f"expect_0 {float(m['expect_0_sum'] / m['expect_0_total']):.3f}")
p, q = targets.softmax(-1), (8 * targets).softmax(-1)
overlap = float(torch.minimum(p, q).sum(-1).mean())
text = f"{', '.join(seen)}; drawn drafts of the second are accepted {overlap:.3f}"
if len(seen) == 2:
    print(f"DEFECT: {text}")
    sys.exit(1)
print(f"OK: {text}")
