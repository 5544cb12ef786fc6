"""An extracted file is checked before it gets the name that makes it count as done."""

from speculators_patches.export import code
from speculators_patches.export.edits import statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="durable_extraction",
    steps=(
        Step(
            slug="check-before-move",
            subject="fix(data): check extracted hidden states before they are in place",
            problem="""
                `generate-offline-data --validate-outputs` moves a file to its final name,
                `hs_<row>.safetensors`, and looks at it afterwards. One whose tokens or shape do not
                fit its sample, or that holds a NaN, is reported and skipped, but it stays under
                that name. The next call takes every such file that can be opened for done, so the
                sample is never extracted again, and training reads it.
                """,
            fix="""
                Check the file where vLLM left it and move it only then. One that does not fit is
                removed. Nothing changes for files that do, or without `--validate-outputs`.
                """,
            risk="""
                A file that was kept for a look after a failed check is now gone; the log still has
                the reason. The check reads from vLLM's folder, which may be on a slower disk than
                the output. Files of earlier runs that were left in place are not found by this.
                """,
            reproduction="reproduce.py",
            files={
                "cli/generate_offline_data.py": (
                    statement("_worker", Match("if", "validate_outputs"), "", where="instead"),
                    statement(
                        "_worker",
                        Match("assign", "t_write"),
                        code.inside("durable_extraction/code_worker.py", "check"),
                        where="before",
                    ),
                )
            },
            tests={"tests/unit/cli/test_check_before_move.py": "test_check_before_move.py"},
            differs="the overlay waits for its server and asks again, whatever the flags say, and "
            "fails where too many samples are lost",
        ),
    ),
)
