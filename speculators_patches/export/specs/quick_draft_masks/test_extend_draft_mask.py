"""A mask for one more position is that of ``from_kv_blocks``, in fewer operations."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.profiler import profile

from speculators.models.eagle3.attention import (
    create_combined_mask_mod,
    extend_mask_for_draft_tokens,
)

ARRAYS = [
    f"{half}_{kind}"
    for half in ("kv", "full_kv", "q", "full_q")
    for kind in ("num_blocks", "indices")
]


def make_mask(documents, window=None):
    return create_block_mask(
        create_combined_mask_mod(documents, len(documents), window),
        None,
        None,
        len(documents),
        len(documents),
        device="cpu",
    )


def rebuilt(mask):
    """The mask with its transposed half derived from the other one."""
    full = mask.full_kv_indices
    return BlockMask.from_kv_blocks(
        mask.kv_num_blocks,
        mask.kv_indices,
        mask.full_kv_num_blocks,
        full,
        mask_mod=mask.mask_mod,
    )


def documents(seed):
    """Up to six documents of up to 300 tokens, padded to whole blocks."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 7, (1,), generator=generator))
    lengths = torch.randint(1, 301, (count,), generator=generator)
    ids = torch.repeat_interleave(torch.arange(count), lengths)
    return torch.cat([ids, torch.full((-len(ids) % 128,), -1)])


@pytest.mark.parametrize("window", [None, 64, 200])
@pytest.mark.parametrize("seed", range(5))
def test_both_halves_belong_together(seed, window):
    mask = make_mask(documents(seed), window)

    for _ in range(4):
        mask = extend_mask_for_draft_tokens(mask)
        expected = rebuilt(mask)
        for name in ARRAYS:
            found, wanted = getattr(mask, name), getattr(expected, name)
            assert torch.equal(found, wanted), name
            assert found.dtype == wanted.dtype
            assert found.stride() == wanted.stride()
        assert mask.seq_lengths == expected.seq_lengths


def test_each_position_adds_a_diagonal_of_blocks():
    documents = torch.zeros(384, dtype=torch.long)
    first = make_mask(documents).to_dense()[0, 0]

    mask = make_mask(documents)
    for position in range(1, 4):
        mask = extend_mask_for_draft_tokens(mask)
        expected = [first] + [torch.eye(3, dtype=first.dtype)] * position

        assert torch.equal(mask.to_dense()[0, 0], torch.cat(expected, dim=1))


def count_operations():
    mask = make_mask(torch.arange(1024) // 512)
    extend_mask_for_draft_tokens(mask)
    with profile() as seen:
        extend_mask_for_draft_tokens(mask)
    return sum(event.count for event in seen.key_averages())


def test_it_takes_few_operations():
    assert count_operations() < 90
