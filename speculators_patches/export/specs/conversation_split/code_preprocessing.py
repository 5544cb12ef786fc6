"""For `speculators/data_generation/preprocessing.py`."""

import hashlib
import json


def _digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return "hash_" + hashlib.sha256(text.encode()).hexdigest()[:32]


def _conversation_names(examples: dict) -> list[str]:
    """Which conversation each row came from: its primary_id, its id, or a digest."""
    rows = len(examples["input_ids"])
    primary = examples.get("primary_id") or [None] * rows
    own = examples.get("id") or [None] * rows
    names = []
    for row, ids in enumerate(examples["input_ids"]):
        # 0 is an id like any other.
        present = [name for name in (primary[row], own[row]) if name not in (None, "")]
        names.append(str(present[0] if present else _digest(list(ids))))
    return names


def name_of_the_conversation(rows):
    # The last row holds the whole conversation; all its rows get the same name.
    conversation = _digest(rows[-1]["conv"]) if rows else ""


def keep_its_name(results, conversation):
    results["conversation"].append(conversation)


def names_of_the_rows(examples):
    names = _conversation_names(examples)


def keep_the_row_s_name(results, status, name):
    if status == "kept":
        results["conversation"].append(name)


def group(combined_dataset):
    # Rows of a conversation become neighbours: the trainer splits between two.
    if "conversation" in combined_dataset.column_names:
        names = list(combined_dataset.with_format(None)["conversation"])
        combined_dataset = combined_dataset.select(_grouped(names))

