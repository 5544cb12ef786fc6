"""50 AdamW steps at 1e-4 on a norm of a fine-tuned drafter."""

import sys
import tempfile
from argparse import Namespace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.models.eagle3 import Eagle3DraftModel
from speculators.train.cli import build_draft_model

folder = tempfile.mkdtemp()
shape = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **shape)).save_pretrained(
    f"{folder}/verifier"
)
fresh = Eagle3DraftModel.from_training_args(
    LlamaConfig(num_hidden_layers=1, **shape),
    draft_vocab_size=64,
    norm_before_residual=False,
    target_layer_ids=[0, 1],
    verifier_name_or_path=f"{folder}/verifier",
    ttt_steps=1,
    draft_attn_impl="sdpa",
)
fresh.to(torch.bfloat16).save_pretrained(f"{folder}/start")

args = Namespace(
    from_pretrained=f"{folder}/start",
    speculator_type="eagle3",
    draft_attn_impl="sdpa",
    verifier_name_or_path=f"{folder}/verifier",
)
norm = build_draft_model(args, Eagle3DraftModel, None, None, None).norm.weight
torch.nn.init.ones_(norm)
optimizer = torch.optim.AdamW([norm], lr=1e-4, weight_decay=0.0)
for _ in range(50):
    optimizer.zero_grad()
    norm.sum().backward()
    optimizer.step()
moved = float((1 - norm.float()).max())
if moved == 0:
    print(f"DEFECT: in {norm.dtype} the norm has not moved in 50 steps of 1e-4")
    sys.exit(1)
print(f"OK: in {norm.dtype} the norm has moved by {moved:.4f}")
