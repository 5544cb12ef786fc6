"""What a training step has to do: floating-point operations and bytes, counted from the dimensions.

No version of the step can be faster than the operations over the rate of the matrix unit, or than
the bytes over the bandwidth of the memory, whichever takes longer. Both rates are measured where
the step is (`ceilings`), not taken from a data sheet.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.real_size import Size

KV_SHARE, MLP = 2, 2112  # query heads a key head; width of the drafter's MLP, undivided


def operations(size: Size, ttt_steps: int, documents: int) -> dict[str, float]:
    """Floating-point operations of one step, by part (a multiplication and an addition are two).

    A matrix that trains costs a product forward and two backward, the frozen head one forward and
    one backward, the verifier's head one forward. The attention of position k sees the causal half
    of each document and k more keys; its backward is 2.5 times its forward.
    """
    tokens, hidden, width = size.tokens, size.hidden, size.heads * 256
    fc = 3 * hidden * hidden
    projections = 2 * hidden * (width + 2 * width // KV_SHARE) + width * hidden
    layer = projections + 3 * hidden * (MLP // size.divide)
    head = hidden * size.draft_vocabulary
    pairs = tokens * (tokens / documents) / 2
    attention = sum(4 * width * (pairs + k * tokens) for k in range(ttt_steps))
    return {
        "fc": 2 * tokens * fc * 2,  # its input needs no gradient
        "layer": 2 * tokens * layer * 3 * ttt_steps,
        "draft_head": 2 * tokens * head * 2 * ttt_steps,
        "verifier_head": 2 * tokens * head,
        "attention": 3.5 * attention,
    }


def least_bytes(size: Size, ttt_steps: int, trained: int) -> dict[str, float]:
    """Fewest bytes through device memory, by part.

    The logits of each position are written once in bfloat16 and read twice (loss and its gradient,
    the verifier's read with them); the gradient is written once and read by the head's backward.
    AdamW reads weight, gradient and two moments and writes three of them, in float32; a gradient
    is written once and read once for its norm.
    """
    logits = 2.0 * size.tokens * size.draft_vocabulary
    return {
        "logits": ttt_steps * (1 + 2 + 2 + 1 + 1) * logits + logits,
        "optimizer": 4.0 * trained * (4 + 3),
        "gradients": 4.0 * trained * 2,
        "weights": 2.0 * (trained * 3 + 4 * size.hidden * size.draft_vocabulary) * ttt_steps,
        "hidden_states": 2.0 * 4 * size.tokens * size.hidden,
    }


def ceilings(device: str) -> dict[str, float]:
    """Rates of this device: bfloat16 products [op/s] and a copy [bytes/s, read and written]."""
    from triton.testing import do_bench  # type: ignore[import-untyped]

    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    product_ms = do_bench(lambda: a @ b, warmup=200, rep=400, return_mode="median")
    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    copy_ms = do_bench(lambda: target.copy_(source), return_mode="median")
    return {
        "matrix_op_per_s": 2 * 8192**3 / product_ms * 1e3,
        "copy_bytes_per_s": 2 * source.numel() * 4 / copy_ms * 1e3,
    }


def floor(size: Size, ttt_steps: int, documents: int, trained: int, rates: Any) -> dict[str, Any]:
    """Operations, bytes and the least seconds they take at the measured rates."""
    work = operations(size, ttt_steps, documents)
    moved = least_bytes(size, ttt_steps, trained)
    record: dict[str, Any] = {
        "operations": {name: float(f"{value:.4g}") for name, value in work.items()},
        "bytes": {name: float(f"{value:.4g}") for name, value in moved.items()},
    }
    if rates:
        matrix = sum(work.values()) / rates["matrix_op_per_s"]
        memory = sum(moved.values()) / rates["copy_bytes_per_s"]
        record |= {
            "matrix_s": round(matrix, 5),
            "memory_s": round(memory, 5),
            "floor_s": round(max(matrix, memory), 5),
            # Vocabulary-wide passes and the optimizer cannot hide behind matrix products that wait
            # for them: what a step of separate kernels would take at these rates.
            "floor_in_turn_s": round(matrix + memory, 5),
        }
    return record
