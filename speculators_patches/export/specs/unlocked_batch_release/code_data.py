"""For `speculators/train/data.py`."""

from typing import Any

import torch
from torch.utils.data._utils.pin_memory import pin_memory

from speculators_patches.patches.unlocked_batch_release import release as _release_shared


class PackedBatch(dict[str, Any]):
    """A packed batch that pins itself, which torch's loaders let it do."""

    def pin_memory(self) -> "PackedBatch":
        """Pin the tensors; those that came from a worker are empty afterwards."""
        pinned = PackedBatch((name, pin_memory(value)) for name, value in self.items())
        for name, value in self.items():
            if isinstance(value, torch.Tensor) and value is not pinned[name]:
                _release_shared(value)
        return pinned
