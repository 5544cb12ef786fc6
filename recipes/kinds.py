"""Kinds of drafter besides EAGLE-3: how upstream trains each and vLLM serves it.

What works end to end for a Gemma 4 body, and what does not, is tried by `benchmarks.drafter_kinds`
and kept in the README's table. MTP is not here: upstream refuses Gemma 4 for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from recipes.config import Recipe

DrafterKind = Literal["eagle3", "peagle", "dflash", "dspark"]
KINDS: tuple[DrafterKind, ...] = get_args(DrafterKind)
# vLLM's speculative config without model and number of tokens. P-EAGLE is EAGLE-3 that drafts all
# positions in one pass.
_SERVED: dict[str, dict[str, Any]] = {
    "eagle3": {"method": "eagle3"},
    "peagle": {"method": "eagle3", "parallel_drafting": True},
    "dflash": {"method": "dflash"},
    "dspark": {"method": "dspark"},
}


def served(kind: DrafterKind) -> dict[str, Any]:
    """vLLM's speculative config of the kind, without model and number of tokens."""
    return dict(_SERVED[kind])


def training_flags(recipe: Recipe) -> list[str]:
    """Upstream's flags that only this kind has; it drafts `num_speculative_tokens` a step.

    DFlash's block holds the token that it drafts from, DSpark's does not.
    """
    n = recipe.num_speculative_tokens
    if recipe.drafter_kind == "eagle3":
        return ["--ttt-steps", str(recipe.ttt_steps)]
    found = {
        "peagle": ["--num-depths", str(n)],
        "dflash": ["--block-size", str(n + 1)],
        "dspark": ["--block-size", str(n)],
    }[recipe.drafter_kind]
    if recipe.mask_token_id is not None:
        found += ["--mask-token-id", str(recipe.mask_token_id)]
    return found
