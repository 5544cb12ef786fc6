"""An arm against the arm without speculation: speed, and whether the answers are the same.

Only prompts that both answered count, and of those only what both answered soundly: a single loop
that runs to the token limit can outweigh a hundred answers in a ratio of totals. Where the two were
given different prompts there is no ratio.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import losslessness, same_distribution, stats, wording
from benchmarks.cells import ByPrompt, CellKey, other_prompts
from benchmarks.schema import RequestRow


def against(
    key: CellKey,
    rows: Sequence[RequestRow],
    base: CellKey | None,
    base_rows: Sequence[RequestRow],
    refused: bool,
    base_refused: bool,
    bad: Collection[str],
) -> dict[str, Any]:
    """What a cell says about its base: `speedup` if there may be one, always `speed_words`.

    Args:
        base: the same cell without speculation, None if none was measured.
        bad: prompts to which either gave a degenerate answer.
    """
    if base is None:
        return {
            "speed_words": f"{key.label}: no ratio, as nothing without speculation was measured on "
            "the same body with the same server flags."
        }
    shared = {r.prompt_id for r in rows} & {r.prompt_id for r in base_rows}
    if len(shared) < 2:
        return {"speed_words": f"{key.label}: no prompt in common with no speculation."}
    others = other_prompts(rows, base_rows)
    if others:
        return {
            "other_prompts": others,
            "speed_words": f"{key.label}: NOT COMPARED with {base.label}: {len(others)} of "
            f"{len(shared)} prompts (e.g. {others[0]}) have another number of tokens there, so "
            "the servers differ in chat template, tokenizer or system prompt.",
        }
    # Losslessness is looked at on all of them: where one loops and the other does not is the point.
    found = _answers(key, sorted(shared), rows, base_rows)
    if refused:
        words = f"{key.label}: REFUSED, degenerate answers; no speedup is reported."
        return found | {"speed_words": words}
    if base_refused:
        words = f"{key.label}: no speedup, its base {base.arm} is refused."
        return found | {"speed_words": words}
    sound = sorted(shared - set(bad))
    if len(sound) < 2:
        return found | {"speed_words": f"{key.label}: too few sound answers for a ratio."}
    mine, theirs = ByPrompt.of(rows, sound), ByPrompt.of(base_rows, sound)
    seen = stats.rate_ratio(
        np.maximum(mine.tokens, 1), mine.seconds, np.maximum(theirs.tokens, 1), theirs.seconds
    )
    words = wording.describe_ratio(key.label, seen)
    if len(sound) < len(shared):
        words += f" {len(shared) - len(sound)} prompts are left out: a degenerate answer."
    changed = (found.get("lossless") or found.get("distribution") or {}).get("changes_answers")
    if changed:
        words += " NOT THE SAME ANSWERS as without speculation: do not serve with it."
    return found | {"speedup": seen.to_json(), "speed_words": words}


def _answers(
    key: CellKey, shared: Sequence[str], rows: Sequence[RequestRow], base_rows: Sequence[RequestRow]
) -> dict[str, Any]:
    first = {r.prompt_id: r for r in reversed(rows)}
    plain = {r.prompt_id: r for r in reversed(base_rows)}
    if key.temperature == 0:
        return {"lossless": _lossless(shared, first, plain)}
    if len(shared) < stats.FEWEST_PROMPTS:
        return {}
    return {
        "distribution": same_distribution.compare_distributions(
            [first[i].text for i in shared], [plain[i].text for i in shared],
            [first[i].completion_tokens for i in shared],
            [plain[i].completion_tokens for i in shared],
        ).to_json()
    }  # fmt: skip


def _lossless(
    shared: Sequence[str], mine: Mapping[str, RequestRow], base: Mapping[str, RequestRow]
) -> dict[str, Any]:
    if all(r.token_ids is not None for i in shared for r in (mine[i], base[i])):
        return losslessness.compare_arm(
            {i: base[i].token_ids or () for i in shared},
            {i: mine[i].token_ids or () for i in shared},
            {i: base[i].gaps or () for i in shared},
        ).to_json()
    return losslessness.compare_arm(
        {i: base[i].text for i in shared}, {i: mine[i].text for i in shared}
    ).to_json()
