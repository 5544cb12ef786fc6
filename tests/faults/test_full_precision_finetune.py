"""full_precision_finetune: upstream's own --from-pretrained path, and what its updates do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running

ASK = """
import json, sys
from argparse import Namespace
from pathlib import Path
import torch
from speculators_patches import apply
apply(only=sys.argv[2:])
from speculators.models.eagle3.core import Eagle3DraftModel
from speculators.train.cli import build_draft_model
from tests.faults import tiny

folder = Path(sys.argv[1])
tiny.drafter(folder).to(torch.bfloat16).save_pretrained(folder / "start")
args = Namespace(
    from_pretrained=str(folder / "start"), speculator_type="eagle3",
    draft_attn_impl="sdpa", verifier_name_or_path=str(tiny.verifier(folder)),
)
model = build_draft_model(args, Eagle3DraftModel, None, None, None)
norm = model.norm.weight
with torch.no_grad():
    norm.fill_(1.0)
optimizer = torch.optim.AdamW([norm], lr=1e-4, weight_decay=0.0)
for _ in range(50):
    optimizer.zero_grad()
    norm.sum().backward()
    optimizer.step()
print(json.dumps({
    "dtypes": sorted({str(p.dtype) for p in model.parameters()}),
    "moved": float((1.0 - norm.float()).max()),
}))
"""


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_small_updates_reach_the_weights(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    """50 AdamW steps of 1e-4, the recipe's rate, on a norm at 1.0: 0.005, or nothing at all."""
    laid_out(version)
    unpatched = running.last_json(running.python(version, "-c", ASK, tmp_path))
    assert unpatched == {"dtypes": ["torch.bfloat16"], "moved": 0.0}
    patched = running.last_json(
        running.python(version, "-c", ASK, tmp_path, "full_precision_finetune")
    )
    assert patched["dtypes"] == ["torch.float32"]
    assert patched["moved"] == pytest.approx(50 * 1e-4, rel=1e-3)
