"""For `speculators/models/eagle3/attention.py`."""

from torch.nn.attention.flex_attention import BlockMask


def end(
    block_mask, kv_num_blocks, kv_indices, extended_full_kv_indices, extend_query_blocks
):
    extended = BlockMask.from_kv_blocks(
        kv_num_blocks,
        kv_indices,
        block_mask.full_kv_num_blocks,
        extended_full_kv_indices,
        mask_mod=block_mask.mask_mod,
        compute_q_blocks=False,  # from_kv_blocks would derive it anew
    )
    extend_query_blocks(extended, block_mask)
    return extended
