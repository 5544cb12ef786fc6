"""The teacher's final norm multiplies by the verifier's own gain."""

from packaging.specifiers import SpecifierSet

from speculators_patches.export.edits import imports, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="verifier_norm_gain",
    needed=SpecifierSet(">=0.9"),
    related="#1090 (merged, 2026-09-07: the same for DFlash), #892 (open, by 2026-08-02: Gemma 3)",
    steps=(
        Step(
            slug="eagle3-verifier-norm",
            subject="fix(eagle3): give verifier_norm the verifier's gain convention",
            problem="""
                Gemma 1 to 3 and Qwen 3.5 store a norm's weight as its distance from 1 and multiply
                by `1 + w`. DFlash takes `resolve_verifier_norm_class` for its `verifier_norm`;
                EAGLE-3, and P-EAGLE with it, take the norm class of their own decoder layer, which
                multiplies by `w`. Trained against such a verifier, a drafter learns the softmax of
                logits that the verifier never computes, without any message.
                """,
            fix="""
                `Eagle3DraftModel` takes the class for `verifier_norm` from
                `resolve_verifier_norm_class(config)` as well. Its parameter keeps its name and
                shape. For all other verifiers the class becomes `Qwen3RMSNorm`, whose arithmetic is
                that of `LlamaRMSNorm`; the drafter's own norms are untouched.
                """,
            risk="""
                Drafters for Gemma 1 to 3 and Qwen 3.5 get other targets than before, so their
                losses are not comparable with earlier ones. Constructing a drafter now resolves the
                verifier's config, which loading the verifier's weights needs anyway; where it can't
                be resolved, a warning is logged and `x * w` is assumed, as for DFlash.
                """,
            reproduction="reproduce.py",
            files={
                "models/eagle3/core.py": (
                    imports("from speculators.models.utils import resolve_verifier_norm_class"),
                    statement(
                        "Eagle3DraftModel.__init__",
                        Match("assign", "self.verifier_norm"),
                        "self.verifier_norm = resolve_verifier_norm_class(config)(\n"
                        "    self.hidden_size, eps=tl_config.rms_norm_eps\n"
                        ")",
                        where="instead",
                    ),
                )
            },
            tests={"tests/unit/models/test_eagle3_verifier_norm.py": "test_verifier_norm.py"},
            differs="the overlay adds 1 to the weight after loading it, so that it works in 0.8.1, "
            "which has no `resolve_verifier_norm_class`",
        ),
    ),
)
