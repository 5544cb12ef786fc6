"""Where in the data a checkpoint stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from speculators_patches.checkpointing.errors import CorruptError

Phase = Literal["train", "validate", "epoch_done"]


@dataclass(frozen=True)
class Cursor:
    """Position of a run, counted in full.

    Attributes:
        epoch: 0-based epoch that `local_step` counts in.
        local_step: batches of that epoch already trained on (0: none yet).
        global_step: optimizer steps of the whole run.
        consumed_samples: samples of the whole run, over all ranks.
        phase: "train": go on with batch `local_step` of `epoch`; "validate": the epoch is trained,
            its validation is not done; "epoch_done": go on with `epoch` + 1.
    """

    epoch: int
    local_step: int
    global_step: int
    consumed_samples: int = 0
    phase: Phase = "train"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Cursor:
        """Raises CorruptError if a field is missing or unknown."""
        try:
            return Cursor(**content)
        except TypeError as error:
            raise CorruptError(f"the data cursor is not readable: {error}") from None
