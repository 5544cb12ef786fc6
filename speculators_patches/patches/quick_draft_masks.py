"""The host does not rebuild an attention mask that it already has.

After each training-time-test position upstream extends the flex-attention mask by one diagonal of
blocks through `BlockMask.from_kv_blocks`, which forgets the transposed half of the mask (which
queries attend to a block of keys; the backward needs it) and builds it anew from the other half:
some 270 small operations, from Python and outside the compiled graph, after every position. On an
H100 the device has nothing to do for 12 to 15 of a step's 48 to 51 ms, most of it in the forward
pass; without these operations the step takes 0.89 of the time, with `accuracy_without_waiting` 0.81
(ttt_steps 3, 4096 tokens; benchmarks/README.md).

The transposed half of the extension is known: the old rows stay as they are, and each new block of
keys is attended to by one block of queries, its own. So it is appended, in a dozen operations. All
arrays of the mask are equal to upstream's, element by element; training is bitwise the same, on the
H100 as well.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask

_MODULE = "speculators.models.eagle3.attention"
_EXTEND = f"{_MODULE}:extend_mask_for_draft_tokens"

PATCH = Patch(
    name="quick_draft_masks",
    defect="After each training-time-test position the host rebuilds the attention mask, in some "
    "270 operations.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            _MODULE,
            "extend_mask_for_draft_tokens",
            fingerprints={">=0.6,<0.9.1": "30e76d04c662d305"},
            aliases=("speculators.models.eagle3.core",),
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream appends to the mask's transposed half, or builds all masks at once",
    proof="tests/faults/test_quick_draft_masks.py::test_a_mask_is_extended_in_few_operations",
    tested=("0.8.1", "0.9.0"),
)


def extend_mask_for_draft_tokens(block_mask: Any) -> Any:
    """The mask for one more position, made from the one before.

    Args:
        block_mask: a BlockMask with both halves, as `create_block_mask` and this function give it.

    Returns:
        A BlockMask with as many more blocks of keys as there are blocks of queries; block j of
        them is attended to, in part, by block j of the queries.
    """
    from torch.nn.attention.flex_attention import BlockMask
    from torch.nn.functional import pad

    counts, indices = block_mask.kv_num_blocks, block_mask.kv_indices
    queries, keys = indices.shape[-2:]
    numbers, _ = _draft_blocks(queries, indices.dtype, indices.device)
    # The new block comes behind those that are attended to already.
    place = counts.unsqueeze(-1).long()
    indices = pad(indices, (0, queries))
    indices.scatter_(-1, place, (numbers[:, None] + keys).expand_as(place))
    full = block_mask.full_kv_indices
    extended = BlockMask.from_kv_blocks(
        counts + 1,
        indices,
        block_mask.full_kv_num_blocks,
        None if full is None else pad(full, (0, queries)),
        mask_mod=block_mask.mask_mod,
        compute_q_blocks=False,
    )
    extend_query_blocks(extended, block_mask)
    return extended


@functools.cache
def _draft_blocks(
    blocks: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which query blocks attend to each new block of keys: its own one.

    A BlockMask lists the blocks that attend first and all others after them, unread,
    in ascending order.

    Returns:
        The numbers of the blocks, [blocks], and [blocks, blocks] whose row j is j, then
        0 to blocks - 1 without j.
    """
    import torch

    numbers = torch.arange(blocks, dtype=dtype, device=device)
    row, place = numbers[:, None], numbers[None, :]
    return numbers, torch.where(place == 0, row, place - (place <= row).to(dtype))


def extend_query_blocks(extended: BlockMask, block_mask: BlockMask) -> None:
    """Give ``extended``, ``block_mask`` with a diagonal of new blocks, its query half.

    The old rows stay; new block of keys j is attended to, in part, by query block j.
    """
    import torch
    from torch.nn.functional import pad

    counts, indices = block_mask.q_num_blocks, block_mask.q_indices
    if counts is None or indices is None:
        raise ValueError("The mask has no query half (compute_q_blocks=False).")
    b, h, _, blocks = indices.shape
    numbers, order = _draft_blocks(blocks, indices.dtype, indices.device)
    order = order.expand(b, h, blocks, blocks)
    extended.q_num_blocks = pad(counts, (0, blocks), value=1)
    extended.q_indices = torch.cat([indices, order], dim=-2)
    counts, indices = block_mask.full_q_num_blocks, block_mask.full_q_indices
    if counts is not None and indices is not None:
        unread = numbers.expand(b, h, blocks, blocks)
        extended.full_q_num_blocks = pad(counts, (0, blocks))
        extended.full_q_indices = torch.cat([indices, unread], dim=-2)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`. Outside the compiled graph, as upstream's, so that the graph stays."""
    import torch

    return {_EXTEND: torch.compiler.disable(extend_mask_for_draft_tokens)}
