"""Training and validation share no conversation.

A conversation of several turns becomes several rows, each of which repeats the turns before it.
Upstream shuffles the rows and cuts them in two at `--train-data-ratio`, so validation measures rows
whose beginnings, and often whole answers, were trained on; the best checkpoint is chosen by that.

`prepare-data` here keeps which conversation a row came from in a column `conversation`, and keeps
the rows of one conversation together (the conversations in the shuffled order of their first rows,
so the seed decides as before). The trainer then moves the cut to the nearest place between two
conversations. Row numbers stay what they are: cached hidden states keep their names. A data set
without the column, prepared by an unpatched upstream, is cut as upstream does, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_DATA = "speculators.train.data"
_PREPARE = "speculators.data_generation.preprocessing"
_INIT = f"{_DATA}:ArrowDataset.__init__"
_PASS = f"{_PREPARE}:_passthrough_pretokenized"
_ROW = f"{_PREPARE}:_append_row"
_ROWS = f"{_PREPARE}:_append_boundary_rows"
_LOAD = f"{_PREPARE}:load_and_preprocess_dataset"
_RANGE = ">=0.8.1,<0.9.1"

PATCH = Patch(
    name="conversation_split",
    defect="Rows of one conversation are on both sides of the split: validation measures what was "
    "trained on.",
    needed=SpecifierSet(">=0.8.1"),
    targets=(
        Target(
            _DATA,
            "ArrowDataset.__init__",
            {"==0.8.1": "dbef57525f7d7a51", "==0.9.0": "7ee4e336ae033982"},
        ),
        Target(
            _PREPARE,
            "_passthrough_pretokenized",
            {"==0.8.1": "97c04b616aab9458", "==0.9.0": "a286eb387406399f"},
        ),
        Target(_PREPARE, "_append_row", {_RANGE: "4c34db40cdca63f5"}),
        Target(
            _PREPARE,
            "_append_boundary_rows",
            {"==0.8.1": "fb7eafe0a4b6c71e", "==0.9.0": "b2475f8c249f984b"},
        ),
        Target(
            _PREPARE,
            "load_and_preprocess_dataset",
            {"==0.8.1": "8230157465205624", "==0.9.0": "053b885379c6791d"},
            aliases=("speculators.cli.prepare_data",),
        ),
    ),
    upstream="no issue found; the fan-out came with the boundary masks",
    fixed_in=None,
    remove_when="upstream splits by conversation",
    proof="tests/faults/test_conversation_split.py::test_no_conversation_is_on_both_sides",
    changes_learning=True,
    tested=("0.8.1", "0.9.0"),
)

COLUMN = "conversation"
logger = logging.getLogger("speculators")

_init: Any = None
_passthrough: Any = None
_append: Any = None
_append_rows: Any = None
_load: Any = None
# Whether each row of the batch under way was kept; read by the wrapper that began the batch.
_kept: list[bool] = []


# ---- prepare-data: which conversation a row came from ----


def append_row(results: dict[str, list[Any]], *rest: Any, **named: Any) -> Any:
    """Upstream's, noting whether it kept the row."""
    status = _append(results, *rest, **named)
    _kept.append(status == "kept")
    return status


def passthrough_pretokenized(examples: dict[str, list[Any]], *rest: Any, **named: Any) -> Any:
    """Upstream's columns and `conversation` [rows] str: `primary_id`, else `id`, else a digest."""
    _kept.clear()
    results = _passthrough(examples, *rest, **named)
    names = _names(examples)
    results[COLUMN] = [name for name, kept in zip(names, _kept, strict=True) if kept]
    return results


def append_boundary_rows(results: dict[str, list[Any]], rows: Any, *rest: Any, **named: Any) -> Any:
    """Upstream's counts; the kept rows get a digest of their conversation as its name."""
    counts = _append_rows(results, rows, *rest, **named)
    # The last row's prefix is the longest: of all rows of the conversation.
    name = _digest(rows[-1]["conv"]) if rows else ""
    results.setdefault(COLUMN, []).extend([name] * counts[0])
    return counts


def load_and_preprocess_dataset(*args: Any, **kwargs: Any) -> Any:
    """Upstream's data set, the rows of each conversation together."""
    dataset, processor = _load(*args, **kwargs)
    if COLUMN in dataset.column_names:
        dataset = dataset.select(grouped(dataset.with_format(None)[COLUMN]))
    return dataset, processor


def _names(examples: dict[str, list[Any]]) -> Iterable[str]:
    rows = len(examples["input_ids"])
    primary = examples.get("primary_id") or [None] * rows
    own = examples.get("id") or [None] * rows
    for first, second, ids in zip(primary, own, examples["input_ids"], strict=True):
        present = [name for name in (first, second) if name not in (None, "")]  # 0 is one too
        yield str(present[0] if present else _digest(list(ids)))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return "hash_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def grouped(names: Sequence[str]) -> list[int]:
    """Row numbers such that equal names are neighbours; otherwise in their order."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        places.setdefault(name, []).append(row)
    return [row for rows in places.values() for row in rows]


# ---- the trainer: where the rows are cut ----


def init(self: Any, *args: Any, **kwargs: Any) -> None:
    """Upstream's `ArrowDataset.__init__`, cut between two conversations.

    Raises:
        ValueError: no cut leaves both sides a conversation.
    """
    ratio = kwargs.get("train_ratio", 1.0)
    if 0.0 < ratio < 1.0:
        kwargs["train_ratio"] = _moved(kwargs.get("datapath", args[1] if len(args) > 1 else None),
                                       ratio)  # fmt: skip
    _init(self, *args, **kwargs)


def _moved(datapath: Any, ratio: float) -> float:
    from datasets import load_from_disk

    data = load_from_disk(datapath)
    if COLUMN not in data.column_names:
        logger.warning(
            f"{datapath} does not say which conversation a row came from: training and validation "
            "may share conversations. Prepare it again with the patch conversation_split."
        )
        return ratio
    names = data.with_format(None)[COLUMN]
    wanted = int(len(names) * ratio)
    place = cut(names, wanted)
    if place is None:
        raise ValueError(
            f"{datapath} cannot be split by conversation: every cut leaves one side empty or "
            "divides a conversation. It needs at least two conversations; prepare it again with "
            "the patch conversation_split."
        )
    # Upstream takes int(rows * ratio): half a row more keeps rounding from reaching another one.
    return ratio if place == wanted else (place + 0.5) / len(names)


def cut(names: Sequence[str], wanted: int) -> int | None:
    """The row number nearest to `wanted` where no name is on both sides; None if there is none.

    Neither side is empty. Of two equally near the lower one.
    """
    last = {name: row for row, name in enumerate(names)}
    free = []
    reach = -1
    for row, name in enumerate(names):
        if row and reach < row:
            free.append(row)
        reach = max(reach, last[name])
    return min(free, key=lambda row: (abs(row - wanted), row), default=None)


def replacements(originals: Mapping[str, Any]) -> Mapping[str, object]:
    """See `registry`."""
    global _init, _passthrough, _append, _append_rows, _load
    _init, _passthrough, _append = originals[_INIT], originals[_PASS], originals[_ROW]
    _append_rows, _load = originals[_ROWS], originals[_LOAD]
    return {
        _INIT: init,
        _PASS: passthrough_pretokenized,
        _ROW: append_row,
        _ROWS: append_boundary_rows,
        _LOAD: load_and_preprocess_dataset,
    }
