"""A text of which the draft vocabulary has no token
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, "tests/unit/models")
from test_mask_unsayable import TOKENS, make_drafter, step, text_of

mask = torch.ones(1, TOKENS)
mask[0, -1] = 0
model = make_drafter(Path(tempfile.mkdtemp()))
_, gradient, _ = step(model, text_of("odd"), mask, mask_unsayable_positions=True)
largest = float(gradient.abs().max())
if largest:
    print(f"DEFECT: no draft can be right, the gradient goes up to {largest:.1e}")
    sys.exit(1)
print("OK: no draft can be right, there is no gradient")
