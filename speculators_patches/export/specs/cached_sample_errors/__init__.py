"""A cached sample that cannot be used costs that sample, and the log says which one it was."""

from speculators_patches.export import code
from speculators_patches.export.edits import insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "cached_sample_errors/code_data.py"

SPEC = Spec(
    name="cached_sample_errors",
    related="#969 (merged, after 2026-08-27) and #994 (merged, 2026-08-14), "
    "which guard generated samples only",
    steps=(
        Step(
            slug="guard-cached-samples",
            subject="fix(data): treat an unusable cached sample as unavailable",
            problem="""
                Generated hidden states are validated inside `GenerationRecoveryGuard`; cached ones
                are read outside of it and not validated. A truncated file, one without the expected
                tensors, or one that stays locked for 10 s ends the run. A file with fewer rows than
                tokens is worse: it is packed out of step with its ids and mask, and nobody notices.
                The same for NaN values, which reach the loss.
                """,
            fix="""
                Read and validate cached samples inside a guard of their own (no retries: a broken
                file does not get better), with the check that generated ones pass. An unusable file
                is one `SampleUnavailable` that counts as a failure, with the file's index and the
                cause in the log; as many in a row as for generation trip the circuit breaker. A
                guard of its own, so that cache hits do not reset the count of failed generations.
                """,
            risk="""
                Every cached sample is scanned once for NaN, one pass over memory that was just
                read. Cached tokens that do not match their row were skipped silently before; they
                count as failures now, so 20 in a row (a cache made for another data set) stop the
                run. "Hidden-state generation recovered" in the log can now mean the cache.
                """,
            reproduction="reproduce.py",
            files={
                "train/data.py": (
                    statement(
                        "ArrowDataset.__init__",
                        Match("assign", "self.generation_recovery"),
                        code.inside(_CODE, "guard"),
                        where="after",
                    ),
                    insert(
                        code.definition(_CODE, "_load_cached"),
                        after="ArrowDataset._generate_hidden_states_once",
                    ),
                    statement(
                        "ArrowDataset._get_raw_data",
                        Match("assign", "cached_hs"),
                        code.inside(_CODE, "read"),
                        where="instead",
                    ),
                )
            },
            tests={"tests/unit/train/test_cached_samples.py": "test_cached_samples.py"},
            differs="the overlay also refuses a file with another number of layers than the "
            "drafter reads, and the wait for a lock can be set",
        ),
    ),
)
