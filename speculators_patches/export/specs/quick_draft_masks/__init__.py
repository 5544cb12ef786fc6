"""The host does not rebuild an attention mask that it already has."""

from speculators_patches.export import code
from speculators_patches.export.edits import imports, insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_OURS = "patches.quick_draft_masks"
_EXTEND = "extend_mask_for_draft_tokens"

SPEC = Spec(
    name="quick_draft_masks",
    steps=(
        Step(
            slug="extend-draft-mask",
            subject="perf(eagle3): extend the draft mask without rebuilding its transpose",
            problem="""
                After every TTT position `extend_mask_for_draft_tokens` adds one diagonal of blocks
                to the flex-attention mask through `BlockMask.from_kv_blocks`. That forgets the
                transposed half of the mask, which the backward needs, and derives it anew from the
                other half: more than 200 small operations, launched one by one from the host
                outside the compiled graph, while the GPU has nothing to do.
                """,
            fix="""
                The transposed half of the extension is known: its old rows stay, and each new block
                of keys is attended to by one block of queries, its own. So it is appended, which
                takes less than a third of the operations. All arrays of the mask, their dtypes and
                strides stay what they were.
                """,
            risk="""
                Results do not change: on an H100 (EAGLE-3 at 4096 tokens, 3 TTT steps, torch 2.11)
                the trained weights are bitwise the same after 78 steps, and a step takes 45.2
                instead of 50.8 ms. A mask without its transposed half (`compute_q_blocks=False`) is
                refused now; `create_block_mask`, which makes the first one, always gives both.
                """,
            reproduction="reproduce.py",
            files={
                "models/eagle3/attention.py": (
                    imports(
                        "import functools",
                        "from torch.nn.functional import pad",
                    ),
                    insert(code.ours(_OURS, "_draft_blocks"), before=_EXTEND),
                    insert(code.ours(_OURS, "extend_query_blocks"), before=_EXTEND),
                    statement(
                        _EXTEND,
                        Match("return", "BlockMask.from_kv_blocks(..."),
                        code.inside("quick_draft_masks/code_attention.py", "end"),
                        where="instead",
                    ),
                )
            },
            tests={"tests/unit/models/test_extend_draft_mask.py": "test_extend_draft_mask.py"},
            differs="the same function for the transposed half, taken from the overlay, which also "
            "makes the other half with fewer operations",
        ),
    ),
)
