"""named_verifier: upstream's own --from-pretrained path with another verifier than the config's."""

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
from transformers import LlamaForCausalLM

folder = Path(sys.argv[1])
tiny.drafter(folder).save_pretrained(folder / "start")
first = LlamaForCausalLM.from_pretrained(tiny.verifier(folder))
other = LlamaForCausalLM.from_pretrained(tiny.verifier(folder))
with torch.no_grad():
    other.lm_head.weight.mul_(-2)
    other.model.norm.weight.fill_(3.0)
other.save_pretrained(folder / "other")
args = Namespace(
    from_pretrained=str(folder / "start"), speculator_type="eagle3",
    draft_attn_impl="sdpa", verifier_name_or_path=str(folder / "other"),
)
model = build_draft_model(args, Eagle3DraftModel, None, None, None)
same = lambda a, b: bool(torch.equal(a.float(), b.float()))
print(json.dumps({
    "head": same(model.verifier_lm_head.weight, other.lm_head.weight),
    "norm": same(model.verifier_norm.weight, other.model.norm.weight),
    "own head kept": same(model.lm_head.weight, first.lm_head.weight),
    "names": Path(model.config.speculators_config.verifier.name_or_path).name,
    "trains": sorted(n for n, p in model.named_parameters() if p.requires_grad and "verifier" in n),
}))
"""


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_the_named_verifier_teaches(
    version: str, laid_out: Callable[[str], Path], tmp_path: Path
) -> None:
    laid_out(version)
    unpatched = running.last_json(running.python(version, "-c", ASK, tmp_path))
    assert unpatched == {
        "head": False, "norm": False, "own head kept": True, "names": "verifier", "trains": [],
    }  # fmt: skip
    patched = running.last_json(running.python(version, "-c", ASK, tmp_path, "named_verifier"))
    assert patched == {
        "head": True, "norm": True, "own head kept": True, "names": "other", "trains": [],
    }  # fmt: skip
