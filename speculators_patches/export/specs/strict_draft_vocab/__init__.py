"""A draft vocabulary that was asked for is built, or the run does not start."""

from speculators_patches.export import code
from speculators_patches.export.edits import statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="strict_draft_vocab",
    related="#1081 (merged, 2026-09-03: made mappings explicit and kept the fallback)",
    steps=(
        Step(
            slug="refuse-missing-token-freq",
            subject="fix(train): refuse --draft-vocab-size without token frequencies",
            problem="""
                `--draft-vocab-size N` needs token frequencies, and `prepare-data` no longer counts
                them unless it is told to. Without `token_freq.pt` the option is dropped with a
                warning and the drafter trains the verifier's whole vocabulary: for a vocabulary of
                262,144 and N = 32,000 eight times the logits in every step, and a drafter that is
                slower to serve. The warning is one line among the start-up messages of a run that
                takes a day.
                """,
            fix="""
                Raise where the mappings can't be generated, and name the file, the two ways to make
                it, and the way to ask for the whole vocabulary. Without `--draft-vocab-size` the
                whole vocabulary is used as before, which is no reason for a warning any more.
                """,
            risk="""
                A launch script that passes `--draft-vocab-size` and never had frequencies now stops
                at its start instead of training another model than was asked for. Under torchrun
                rank 0 raises, as it does already when the generated size does not match.
                """,
            reproduction="reproduce.py",
            files={
                "train/cli.py": (
                    statement(
                        "_generate_vocab_mappings",
                        Match("return", "None"),
                        code.inside("strict_draft_vocab/code_cli.py", "missing_frequencies"),
                        where="instead",
                    ),
                    # What is left of the fallback's reasons.
                    statement(
                        "parse_vocab_mappings",
                        Match("assign", "token_freq_path", nth=1),
                        "",
                        where="instead",
                    ),
                    statement(
                        "parse_vocab_mappings",
                        Match("call", "logger.warning"),
                        "",
                        where="instead",
                    ),
                    statement(
                        "parse_vocab_mappings",
                        Match("assign", "token_freq_path"),
                        'logger.info("No --draft-vocab-size: using the full verifier vocab")',
                        where="instead",
                    ),
                )
            },
            tests={"tests/unit/train/test_missing_token_freq.py": "test_missing_token_freq.py"},
            differs="the overlay also turns upstream's other failures there into one sentence",
        ),
    ),
)
