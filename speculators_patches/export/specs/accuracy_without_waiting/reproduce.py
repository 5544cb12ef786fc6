"""How often a compiled graph is cut to count the accuracy of one position."""

import sys

import torch

from speculators.models.metrics import compute_accuracy_single_step

ids = torch.arange(8)[None]
correct = torch.ones_like(ids, dtype=torch.bool)
seen = torch._dynamo.explain(compute_accuracy_single_step)(ids, ids, ids > 3, correct)
if seen.graph_break_count:
    print(f"DEFECT: {seen.graph_count} graphs, {seen.graph_break_count} cut")
    sys.exit(1)
print(f"OK: {seen.graph_count} graph, no cut")
