"""--save-best deletes only what its run wrote."""

from speculators_patches.export import code
from speculators_patches.export.edits import body, docstring, insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "save_best_scope/code_checkpointer.py"

SPEC = Spec(
    name="save_best_scope",
    related="#307 (open, 2026-02-26: asked for --save-best)",
    steps=(
        Step(
            slug="save-best-scope",
            subject="fix(train): let --save-best delete nothing but epochs",
            problem="""
                With `--save-best`, `cleanup_keep_only_best` removes everything under `--save-path`
                but the best epoch, its link and `train_command.txt`: `run.yaml`, logs, another
                run's results, whatever else lies there. `update_best_symlink` removes a folder
                named `checkpoint_best` with all it holds. Nothing of that can be had back.
                """,
            fix="""
                Delete what has an epoch's name, a number, and the links to it; nothing else. A
                `checkpoint_best` that is no link is renamed instead of removed.
                """,
            risk="""
                Whatever else a path held stays there, and the best checkpoint's own files are
                untouched. Numbered folders of another run under the same path still go, as before:
                telling runs apart would take a mark in each folder.
                """,
            reproduction="reproduce.py",
            files={
                "train/checkpointer.py": (
                    statement(
                        "BaseCheckpointer.update_best_symlink",
                        Match("call", "shutil.rmtree"),
                        code.inside(_CODE, "move_aside"),
                        where="instead",
                    ),
                    body(
                        "BaseCheckpointer.cleanup_keep_only_best",
                        code.inside(_CODE, "cleanup_keep_only_best"),
                    ),
                    docstring(
                        "BaseCheckpointer.cleanup_keep_only_best",
                        """
                        Delete every epoch's folder except best_epoch's, and the links to them.

                        Whatever else lies under the path is not ours and stays.
                        """,
                    ),
                    insert(code.definition(_CODE, "_unused_name"), before="convert_float_dtype"),
                )
            },
            tests={"tests/unit/train/test_save_best_scope.py": "test_save_best_scope.py"},
            differs="the overlay marks folders with the run's id and spares other runs' epochs too",
        ),
    ),
)
