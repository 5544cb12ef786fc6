"""--save-best deletes only what its run wrote."""

from speculators_patches.export import code
from speculators_patches.export.edits import body, docstring, insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "save_best_scope/code_checkpointer.py"

SPEC = Spec(
    name="save_best_scope",
    related="#307 (asked for --save-best)",
    steps=(
        Step(
            slug="save-best-scope",
            subject="fix(train): let --save-best delete only this run's checkpoints",
            problem="""
                With `--save-best`, `cleanup_keep_only_best` removes everything under `--save-path`
                but the best epoch, its link and `train_command.txt`: `run.yaml`, logs, another
                run's results, whatever else lies there. `update_best_symlink` removes a folder
                named `checkpoint_best` with all it holds. Nothing of that can be had back.
                """,
            fix="""
                The checkpointer notes which epochs it has saved or resumed from, and the cleanup
                deletes those folders and the links to them, nothing else. A `checkpoint_best` that
                is no link is renamed instead of removed.
                """,
            risk="""
                Folders of an earlier process that were neither saved nor resumed from stay, so a
                path that was used with other settings before may keep more than the best epoch.
                That is the price of not deleting what is not known to be one's own.
                """,
            reproduction="reproduce.py",
            files={
                "train/checkpointer.py": (
                    statement(
                        "BaseCheckpointer.__init__",
                        Match("if", "self.previous_epoch != -1"),
                        code.inside(_CODE, "remember_resumed"),
                        where="before",
                    ),
                    statement(
                        "SingleGPUCheckpointer.save_checkpoint",
                        Match("call", "self._copy_train_command"),
                        code.inside(_CODE, "remember_saved"),
                        where="after",
                    ),
                    statement(
                        "DistributedCheckpointer.save_checkpoint",
                        Match("call", "self._copy_train_command"),
                        code.inside(_CODE, "remember_saved"),
                        where="after",
                    ),
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
                        Delete the epochs that this run saved or resumed from, except best_epoch,
                        and the links to them.
                        """,
                    ),
                    insert(code.definition(_CODE, "_unused_name"), before="convert_float_dtype"),
                )
            },
            tests={"tests/unit/train/test_save_best_scope.py": "test_save_best_scope.py"},
            differs="the overlay marks folders with the run's id on disk, so that what an earlier "
            "process of the same run wrote goes too",
        ),
    ),
)
