"""A batch whose samples all failed has the precision and width of a real one."""

from speculators_patches.export import code
from speculators_patches.export.edits import expression, parameter, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="empty_sample_dtype",
    related="#527 (merged, 2026-06-02, for 0.6.0), of which this is a backport to 0.5",
    steps=(
        Step(
            slug="empty-sample-dtype",
            subject="fix(train): give placeholder batches the run's dtype",
            problem="""
                When vLLM answers none of a batch's requests in time, the collate function puts a
                placeholder in their place that is float32 and three hidden states wide, with float
                ids and a float mask. The model's weights are in `--hidden-states-dtype`, bfloat16
                by default, so the first such batch ends the run with a dtype mismatch in `fc`.
                """,
            fix="""
                `create_collate_fn` takes the number of target layers and the dtype, bfloat16 as the
                command line's default, and hands them to `create_empty_sample`, whose ids and mask
                get the dtypes of real ones. The training script passes the data set's dtype.
                """,
            risk="""
                None for batches with a sample in them. Others who call `create_empty_sample`
                get bfloat16 where they got float32.
                """,
            reproduction="reproduce.py",
            files={
                "train/data.py": (
                    parameter(
                        "create_empty_sample",
                        "num_target_layers: int = 3",
                        after="hidden_size",
                        inline=True,
                    ),
                    parameter(
                        "create_empty_sample",
                        "dtype: torch.dtype = torch.bfloat16",
                        after="num_target_layers",
                        inline=True,
                    ),
                    statement(
                        "create_empty_sample",
                        Match("return"),
                        code.inside("empty_sample_dtype/code_data.py", "placeholder"),
                        where="instead",
                    ),
                    parameter(
                        "create_collate_fn",
                        "num_target_layers: int = 3,\ndtype: torch.dtype = torch.bfloat16",
                        after="preprocess",
                    ),
                    expression(
                        "create_collate_fn",
                        "create_empty_sample(hidden_size)",
                        "create_empty_sample(hidden_size, num_target_layers, dtype)",
                    ),
                )
            },
            beside={
                "scripts/train.py": (
                    expression(
                        "",
                        "create_collate_fn(args.total_seq_len, hidden_size, preprocess)",
                        "create_collate_fn(\n            args.total_seq_len,\n"
                        "            hidden_size,\n            preprocess,\n"
                        "            dtype=dataset.hidden_states_dtype,\n        )",
                    ),
                )
            },
            tests={"tests/unit/train/test_empty_sample.py": "test_empty_sample.py"},
            differs="the overlay cannot edit a user's script; it reads the dtype from the trainer",
        ),
    ),
)
