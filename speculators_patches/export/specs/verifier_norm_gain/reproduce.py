"""Targets for a tiny Gemma 2 against its own logits
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, "tests/unit/models")
from test_eagle3_verifier_norm import HIDDEN, make_drafter, make_verifier, targets

folder = Path(tempfile.mkdtemp())
verifier = make_verifier(folder, "gemma2")
states = 20 * torch.randn(1, 64, HIDDEN)
with torch.no_grad():
    served = verifier.lm_head(verifier.model.norm(states)).softmax(-1)
    taught = targets(make_drafter(folder), states).softmax(-1)
apart = float((served - taught).abs().sum(-1).mean() / 2)
if apart > 1e-5:
    print(f"DEFECT: total variation between verifier and targets is {apart:.3f}")
    sys.exit(1)
print(f"OK: total variation between verifier and targets is {apart:.0e}")
