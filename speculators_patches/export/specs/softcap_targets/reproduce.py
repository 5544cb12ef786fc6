"""Targets for a tiny Gemma 2 whose config caps logits at 2
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, "tests/unit/models")
from test_softcap_targets import HIDDEN, make_drafter

head = make_drafter(Path(tempfile.mkdtemp()), cap=2.0).verifier_lm_head
targets = head(torch.randn(8, HIDDEN) * 50)
largest = float(targets.abs().max())
if largest > 2:
    print(f"DEFECT: the verifier caps at 2.0, targets go up to {largest:.1f}")
    sys.exit(1)
print(f"OK: targets go up to {largest:.1f}")
