"""The default loss compiles under every torch that speculators allows."""

from packaging.specifiers import SpecifierSet

from speculators_patches.export import code
from speculators_patches.export.edits import expression, imports, insert
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="fused_loss_compiles",
    needed=SpecifierSet(">=0.8.1"),
    related="pytorch/pytorch#177874 (merged, 2026-03-19, in torch 2.12)",
    steps=(
        Step(
            slug="fused-loss-old-torch",
            subject="fix(losses): compile the fused loss under torch 2.9 to 2.11",
            problem="""
                With torch 2.9 to 2.11, which `torch>=2.9.0` allows, training with the default
                `--loss-implementation fused` ends at its first step: "ListVariable(length=21) is
                already tracked for mutation". To call `early_config_prune` dynamo reads the
                kernel's list of configs, and in these versions it registers the list once more at
                every launch, past its own look-up (pytorch/pytorch#177874, fixed in 2.12). The
                second launch of a trace raises, and TTT launches two kernels per position.
                """,
            fix="""
                Below torch 2.12 the kernels are autotuned without the pruning callback, so dynamo
                has no reason to read the list. The callback only drops tiles wider than the
                vocabulary; above 16,384 tokens it drops none, and a wider tile is masked.
                """,
            risk="""
                Below torch 2.12, and for draft vocabularies of up to 16,384 tokens, the autotuner
                also compiles and times tiles that only add masked lanes: a longer first step. From
                2.12 on nothing changes. The test asks for torch 2.11's behaviour by putting its
                line back into dynamo and tracing on the CPU; the error itself was first met on a
                GPU under torch 2.11, on which this change has not been run yet. An alternative is
                to ask for `torch>=2.12`.
                """,
            reproduction="reproduce.py",
            files={
                "losses/fused.py": (
                    imports("from packaging import version"),
                    expression("", "{'early_config_prune': _prune_oversized_tiles}", "_PRUNE_BY"),
                    insert(
                        code.inside("fused_loss_compiles/code_fused.py", "module"),
                        after="_prune_oversized_tiles",
                    ),
                )
            },
            tests={"tests/unit/models/test_fused_loss_trace.py": "test_fused_loss_trace.py"},
            differs="the overlay gives dynamo the look-up of torch 2.12, for every Triton kernel",
        ),
    ),
)
