"""The forward pass copies no number from the host: such a copy waits for the device."""

import sys

import torch
from torch.overrides import TorchFunctionMode
from transformers import LlamaConfig, LlamaForCausalLM

from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel

TOKENS, STEPS = 12, 3
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def make_drafter(folder):
    torch.manual_seed(0)
    verifier = LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, **SHAPE))
    verifier.save_pretrained(folder)
    return Eagle3DraftModel.from_training_args(
        LlamaConfig(num_hidden_layers=1, **SHAPE),
        norm_before_residual=False,
        target_layer_ids=[0, 1, 2],
        verifier_name_or_path=str(folder),
        ttt_steps=STEPS,
        draft_attn_impl="sdpa",
        draft_vocab_size=64,
    )


class Copies(TorchFunctionMode):
    """Counts `torch.tensor(..., device=...)` in the model's own forward.

    What it calls is compiled on a GPU, and compiled code makes its constants there.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function is torch.tensor and "device" in (keywords or {}):
            file = sys._getframe(1).f_code.co_filename
            self.count += file.endswith("eagle3/core.py")
        return function(*arguments, **(keywords or {}))


def forward(model):
    """Loss, metrics and copies of one step."""
    torch.manual_seed(1)
    with Copies() as copies:
        _, loss, metrics = model(
            hidden_states=torch.randn(1, TOKENS, 3 * 32),
            input_ids=torch.randint(0, 64, (1, TOKENS)),
            document_ids=torch.zeros(1, TOKENS, dtype=torch.long),
            loss_mask=torch.ones(1, TOKENS, dtype=torch.bool),
            verifier_last_hidden_states=torch.randn(1, TOKENS, 32),
            ttt_steps=STEPS,
            loss_config=resolve_loss_config("kl_div", "eager"),
        )
    return loss, metrics, copies.count


def test_no_number_is_copied_from_the_host(tmp_path):
    _, _, copies = forward(make_drafter(tmp_path))

    assert copies == 0


def test_the_loss_is_the_sum_over_the_steps(tmp_path):
    loss, metrics, _ = forward(make_drafter(tmp_path))

    parts = [metrics[f"loss_{step}_sum"] for step in range(STEPS)]
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert torch.equal(loss, parts[0] + parts[1] + parts[2])
    assert torch.equal(metrics["loss_sum"], loss)
    assert float(metrics["loss_total"]) == 1
    assert metrics["loss_total"].dtype == torch.float32
    loss.backward()
