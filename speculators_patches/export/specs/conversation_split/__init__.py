"""Training and validation share no conversation."""

from speculators_patches.export import code
from speculators_patches.export.edits import docstring, expression, imports, insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_PREPARE = "conversation_split/code_preprocessing.py"
_DATA = "conversation_split/code_data.py"
_OURS = "patches.conversation_split"
_NEW_COLUMN = 'results["conversation"] = []'

SPEC = Spec(
    name="conversation_split",
    steps=(
        Step(
            slug="split-by-conversation",
            subject="fix(data): split training and validation between conversations",
            problem="""
                A conversation of several turns becomes several rows, each of which repeats the
                turns before it. The rows are shuffled and then cut at `--train-data-ratio`, so
                validation measures rows whose beginnings, and often whole answers, were trained
                on. The best checkpoint is chosen by that number.
                """,
            fix="""
                `prepare-data` keeps in a column `conversation` which one a row came from (the row's
                `primary_id` or `id`, else a digest) and keeps the rows of a conversation together,
                the conversations in the shuffled order of their first rows. `ArrowDataset` moves
                the cut to the nearest place between two conversations. A data set without the
                column is cut as before, with a warning.
                """,
            risk="""
                Row order changes for conversations of several turns, so data prepared anew does not
                go with hidden states cached for an older preparation (their tokens are compared and
                would not match). The split moves by less than one conversation. Existing data sets
                are read as before.
                """,
            reproduction="reproduce.py",
            files={
                "data_generation/preprocessing.py": (
                    imports("import hashlib"),
                    insert(
                        code.ours(_OURS, "grouped").replace("def grouped", "def _grouped")
                        .replace("Sequence[str]", "list[str]"),
                        before="_append_row",
                    ),
                    insert(code.definition(_PREPARE, "_digest"), before="_grouped"),
                    insert(code.definition(_PREPARE, "_conversation_names"), after="_digest"),
                    statement(
                        "_append_boundary_rows",
                        Match("assign", "num_kept", nth=0),
                        code.inside(_PREPARE, "name_of_the_conversation"),
                        where="before",
                    ),
                    statement(
                        "_append_boundary_rows",
                        Match("assign", "num_kept", nth=1),
                        code.inside(_PREPARE, "keep_its_name"),
                        where="after",
                    ),
                    statement(
                        "_passthrough_pretokenized",
                        Match("assign", "results"),
                        _NEW_COLUMN,
                        where="after",
                    ),
                    statement(
                        "_passthrough_pretokenized",
                        Match("assign", "num_unsupervised", nth=0),
                        code.inside(_PREPARE, "names_of_the_rows"),
                        where="before",
                    ),
                    expression("_passthrough_pretokenized", "(ids, mask)", "ids, mask, name"),
                    expression(
                        "_passthrough_pretokenized",
                        "zip(examples['input_ids'], examples['loss_mask'], strict=True)",
                        'zip(\n        examples["input_ids"], examples["loss_mask"], names, '
                        "strict=True\n    )",
                    ),
                    statement(
                        "_passthrough_pretokenized",
                        Match("assign", "status"),
                        code.inside(_PREPARE, "keep_the_row_s_name"),
                        where="after",
                    ),
                    statement(
                        "_preprocess_batch",
                        Match("assign", "results"),
                        _NEW_COLUMN,
                        where="after",
                    ),
                    statement(
                        "load_and_preprocess_dataset",
                        Match("if", "len(combined_dataset) == 0 and (not allow_empty_output)"),
                        code.inside(_PREPARE, "group"),
                        where="before",
                    ),
                ),
                "train/data.py": (
                    insert(code.definition(_DATA, "_between_conversations"), before="BaseDataset"),
                    insert(
                        code.ours(_OURS, "cut").replace("def cut", "def _nearest_cut"),
                        before="_between_conversations",
                    ),
                    docstring(
                        "_nearest_cut",
                        """
                        The row nearest to `wanted` where no name is on both sides.

                        Neither side is empty; of two equally near rows it is the lower one.
                        ``None`` if there is no such row.
                        """,
                    ),
                    statement(
                        "ArrowDataset.__init__",
                        Match("assign", "split_idx"),
                        code.inside(_DATA, "move_the_cut"),
                        where="after",
                    ),
                ),
            },
            tests={"tests/unit/train/test_conversation_split.py": "test_conversation_split.py"},
            differs="the same functions `grouped` and `cut`, taken from the overlay",
        ),
    ),
)
