"""How much memory the trainer takes on a GPU, from the shape of its step.

Weights, moments and frozen tensors are counted. What a step holds besides grows with the packed
tokens, with the positions trained (each keeps its own bfloat16 copies of the layer's and the head's
weights for the backward: 2 x 166 M bytes of the 376 MB) and with both. Those three rates are fitted
to the six eager settings of benchmarks/results/train_step_h100.json (speculators 0.9.0, torch
2.11, the real drafter, ttt_steps 3 to 5, 4096 and 8192 tokens); tests/unit/test_train_memory.py
holds the predictions within 10 % of every measured peak, the fused loss's included.
"""

from __future__ import annotations

from dataclasses import dataclass

TRAINED, FROZEN = 99_314_688, 918_400_000
# Weights and two moments of what trains, and what is frozen, in float32.
STATE_BYTES = 4 * (3 * TRAINED + FROZEN)
# Of the device's memory that PyTorch's allocator does not know: CUDA's context, libraries.
OUTSIDE_BYTES = 1.13e9


@dataclass(frozen=True)
class Rates:
    """Bytes a packed token, a position, and a packed token of a position."""

    token: float
    position: float
    both: float

    def peak(self, ttt_steps: int, tokens: int) -> float:
        return STATE_BYTES + self.token * tokens + (self.position + self.both * tokens) * ttt_steps


ALLOCATED = Rates(217_600, 376.3e6, 193_136)
RESERVED = Rates(309_191, 545.9e6, 214_747)


def allocated_bytes(ttt_steps: int, tokens: int) -> float:
    """Peak of the tensors of a training step.

    Args:
        ttt_steps: positions trained.
        tokens: packed tokens a step.
    """
    return ALLOCATED.peak(ttt_steps, tokens)


def device_bytes(ttt_steps: int, tokens: int) -> float:
    """What the trainer takes of the device at its peak: the allocator's blocks and the context."""
    return RESERVED.peak(ttt_steps, tokens) + OUTSIDE_BYTES
