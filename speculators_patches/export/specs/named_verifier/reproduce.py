"""A drafter of one verifier, fine-tuned on another one's hidden states
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, "tests/unit/train")
from test_finetune_verifier import finetune, make_drafter, make_verifier

folder = Path(tempfile.mkdtemp())
make_verifier(folder / "first", seed=0)
served = make_verifier(folder / "second", seed=1)
make_drafter(folder / "first", folder / "drafter")
model = finetune(folder / "drafter", folder / "second")
taught_by = Path(model.config.speculators_config.verifier.name_or_path).name
if not torch.equal(model.verifier_lm_head.weight, served.lm_head.weight):
    print(f"DEFECT: asked for 'second', targets are made with the head of '{taught_by}'")
    sys.exit(1)
print(f"OK: targets are made with the head of '{taught_by}'")
