"""The teacher's logits go through the verifier's own final softcap."""

from speculators_patches.export import code
from speculators_patches.export.edits import insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "softcap_targets/code_model.py"
_CLASS = "DraftVocabMixin"

SPEC = Spec(
    name="softcap_targets",
    steps=(
        Step(
            slug="softcap-targets",
            subject="fix(models): apply the verifier's final softcap to training targets",
            problem="""
                Gemma 2 and Gemma 4 serve softmax(cap * tanh(logits / cap)); their configs have
                `final_logit_softcapping` of 30. Targets are made from the raw logits, so where
                these are near the cap the teacher is far surer than the verifier that will judge
                the drafts. A drafter that learnt it perfectly is still rejected at T > 0: the total
                variation is 0.13 at top logits of 25 and 0.24 at 30 (simulated).
                """,
            fix="""
                When the verifier's weights are loaded, `verifier_lm_head` gets a forward hook that
                caps what it returns, if the verifier's config (its `text_config` included) has a
                cap. Every drafter that learns the verifier's distribution makes its targets with
                that head, and every way of loading it, DFlash's own included, passes through
                `_load_verifier_weights`. A hook and not another module: state dicts, FSDP and
                `torch.compile` see what they saw. The drafter's own head is not capped, as vLLM
                serves it without.
                """,
            risk="""
                Drafters for capped verifiers learn something else than before, and their losses are
                not comparable with earlier ones. Verifiers without a cap are left alone. A cap that
                is not a positive number is refused.
                """,
            reproduction="reproduce.py",
            files={
                "model.py": (
                    insert(code.definition(_CODE, "_final_softcap"), before=_CLASS),
                    insert(code.definition(_CODE, "_cap_logits"), before=_CLASS),
                    insert(
                        code.definition(_CODE, "_cap_targets"),
                        after=f"{_CLASS}.load_verifier_weights",
                    ),
                    statement(
                        f"{_CLASS}._load_verifier_weights",
                        Match("call", "self.verifier_lm_head.load_state_dict"),
                        "self._cap_targets()",
                        where="after",
                    ),
                )
            },
            tests={"tests/unit/models/test_softcap_targets.py": "test_softcap_targets.py"},
            differs="the same operations, in a hook of the same kind",
        ),
    ),
)
