"""A batch whose samples all failed has the precision and width of a real one.

speculators 0.5.0 builds the placeholder for such a batch in float32 and three hidden states wide.
The trainer's weights are in `--hidden-states-dtype` (bfloat16 by default), so the first batch that
vLLM did not answer in time ends the run with a dtype mismatch in `fc`; float ids and a float mask
would follow. Upstream's fix (#527) threads the dtype through its training script. A patch cannot
edit a user's copy of that script, but the trainer has both: its loaders' datasets know the dtype,
its model knows how many layers it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch

PATCH = Patch(
    name="empty_sample_dtype",
    defect="A batch whose samples all timed out is float32 and ends a bfloat16 run.",
    needed=SpecifierSet(">=0.5.0,<0.6"),
    targets=(
        Target(
            "speculators.train.data",
            "create_empty_sample",
            fingerprints={"==0.5.0": "bca1095b44495994"},
        ),
        Target(
            "speculators.train.trainer",
            "Trainer.__init__",
            fingerprints={"==0.5.0": "49cc8962e1c8efc3"},
        ),
        # The placeholder is what this passes on; it calls create_empty_sample(hidden_size).
        Target(
            "speculators.train.data",
            "create_collate_fn",
            fingerprints={"==0.5.0": "5d62d7a75745241e"},
            observed=True,
        ),
    ),
    upstream="https://github.com/vllm-project/speculators/pull/527",
    fixed_in="0.6.0",
    remove_when="speculators 0.5 is no longer supported here",
    proof="tests/compat/test_empty_sample_dtype.py::test_training_survives_a_batch_that_timed_out",
    tested=("0.5.0", "0.6.0.2", "0.7.0.2", "0.8.1", "0.9.0"),
)

# What a real batch of this process's run looks like. Set when a Trainer is built; DataLoader
# workers get it because 0.5.0 forks them afterwards (its collate function cannot be spawned).
_num_target_layers = 3
_dtype: torch.dtype | None = None
_trainer_init: Any = None


def create_empty_sample(
    hidden_size: int, num_target_layers: int | None = None, dtype: torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """A sample of length 0; same keys as upstream's.

    Args:
        hidden_size: of the verifier (body).
        num_target_layers: hidden states read per token; None: the trainer's model's, else 3.
        dtype: of the hidden states; None: the trainer's data sets', else bfloat16.

    Returns:
        hidden_states [0, num_target_layers * hidden_size] and verifier_last_hidden_states
        [0, hidden_size] in `dtype`, input_ids and position_ids [0] int64, loss_mask [0] bool,
        lengths [1] int64.
    """
    import torch

    dtype = dtype or _dtype or torch.bfloat16
    layers = num_target_layers or _num_target_layers
    return {
        "hidden_states": torch.empty(0, layers * hidden_size, dtype=dtype),
        "input_ids": torch.empty(0, dtype=torch.long),
        "verifier_last_hidden_states": torch.empty(0, hidden_size, dtype=dtype),
        "loss_mask": torch.empty(0, dtype=torch.bool),
        "lengths": torch.tensor([0], dtype=torch.long),
        "position_ids": torch.arange(0, dtype=torch.long),
    }


def trainer_init(self: Any, model: Any, config: Any, *args: Any, **kwargs: Any) -> None:
    """Upstream's `Trainer.__init__`, noting first what this run's batches look like."""
    global _num_target_layers, _dtype
    # Both drafters of 0.5.0 (EAGLE-3, DFlash) read all hidden states at once through `fc`.
    _num_target_layers = model.fc.in_features // model.fc.out_features
    _dtype = config.hidden_states_dtype
    _trainer_init(self, model, config, *args, **kwargs)


def replacements(originals: Mapping[str, object]) -> Mapping[str, object]:
    """See `registry`."""
    global _num_target_layers, _dtype, _trainer_init
    _num_target_layers, _dtype = 3, None
    _trainer_init = originals["speculators.train.trainer:Trainer.__init__"]
    return {
        "speculators.train.data:create_empty_sample": create_empty_sample,
        "speculators.train.trainer:Trainer.__init__": trainer_init,
    }
