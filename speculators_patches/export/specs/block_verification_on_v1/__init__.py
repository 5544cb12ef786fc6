"""vLLM's V1 model runner refuses block verification instead of ignoring it."""

from speculators_patches.export import code
from speculators_patches.export.edits import Edit, statement, text
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "block_verification_on_v1/code_config.py"

SPEC = Spec(
    name="block_verification_on_v1",
    package="vllm",
    related=(
        "vllm#46781 (merged: block verification in the V2 runner), "
        "vllm#40819 (open, 2026-04-24: the same for V1)"
    ),
    steps=(
        Step(
            slug="v1-refuses-block-verification",
            subject="[Bugfix][Spec Decode] Refuse block verification on Model Runner V1",
            problem="""
                `rejection_sample_method="block"` is implemented by Model Runner V2 only. V1 takes
                it without a word: its `RejectionSampler` looks at the method for "synthetic" alone
                and verifies token by token. `draft_sample_method="probabilistic"` is lost with it,
                because V1's proposer keeps draft probabilities for "standard" alone, so the server
                drafts greedily. V1 is also what is fallen back to where V2 cannot be used (no
                Triton, as on a CPU; a feature that V2 lacks), so that whoever measures block
                verification there measures the standard method with greedy drafts.
                """,
            fix="""
                Add block verification to what V1 is known not to support, beside DSpark and
                adaptive verification. `VllmConfig` then ends with "Model Runner V1 does not
                support: ..." for an explicit `VLLM_USE_V2_MODEL_RUNNER=0` and for a fallback alike,
                and the setting's docstring says which runner has it. V1 is not given the feature:
                it gives way to V2.
                """,
            risk="""
                A server on V1 that was started with "block" so far does not start any more, and has
                to leave the setting out to get what it was getting ("standard" also makes
                probabilistic drafts work again). V2, "standard" and "synthetic" are not touched.
                A platform with a runner of its own that verifies blocks would take the entry out of
                the list, as it does for others. If V1 is to have the feature after all (#40819),
                that change removes these lines.
                """,
            reproduction="reproduce.py",
            files={
                "config/vllm.py": (
                    statement(
                        "VllmConfig._get_v1_model_runner_unsupported_features",
                        Match("if", "self.speculative_config.enable_adaptive_verification"),
                        code.inside(_CODE, "block_is_unsupported"),
                        where="after",
                    ),
                ),
                "config/speculative.py": (
                    # Only shows the place: what else the class has is of no concern.
                    Edit(
                        "",
                        text(
                            "SpeculativeConfig",
                            "instead of one at a time.",
                            "instead of one at a time (Model Runner V2 only).",
                        ).change,
                    ),
                ),
            },
            tests={
                "tests/config/test_v1_rejection_sample_method.py": (
                    "test_v1_rejection_sample_method.py"
                )
            },
            differs="the overlay makes V1 verify blocks, this refuses to",
        ),
    ),
)
