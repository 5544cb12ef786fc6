"""Reading upstream's responses file while it grows, and what is in it at the end.

One JSON object a line; a conversation (`primary_id`) has one row per answered turn. The file of a
real run is about a gigabyte, so it is read once, in pieces, never as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Responses:
    """What a responses file holds so far; `read_on` takes in what was appended since.

    Attributes:
        conversations: ids of the answered conversations.
        lengths: answer tokens of each row.
        cut: rows whose answer ended at the token limit.
    """

    path: Path
    conversations: set[str] = field(default_factory=set)
    lengths: list[int] = field(default_factory=list)
    cut: int = 0
    _offset: int = 0

    def read_on(self) -> Responses:
        for row in self._new_rows():
            self.conversations.add(row["primary_id"])
            self.lengths.append(sum(row["loss_mask"]))
            self.cut += row["metadata"].get("finish_reason") == "length"
        return self

    def _new_rows(self) -> Iterator[dict[str, Any]]:
        try:
            with self.path.open("rb") as f:
                f.seek(self._offset)
                for line in f:
                    if not line.endswith(b"\n"):
                        return  # still being written
                    self._offset += len(line)
                    yield json.loads(line)
        except FileNotFoundError:
            return

    def summary(self) -> dict[str, Any]:
        """Counts and answer lengths, for the manifest."""
        lengths = sorted(self.lengths)
        return {
            "answered": len(self.conversations),
            "rows": len(lengths),
            "cut_at_limit": self.cut,
            "answer_tokens": {
                "total": sum(lengths),
                "median": lengths[len(lengths) // 2] if lengths else 0,
                "longest": lengths[-1] if lengths else 0,
            },
        }


def count_lines(path: Path) -> int:
    """Newlines in a file; 0 where there is none."""
    try:
        with path.open("rb") as f:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: f.read(1 << 20), b""))
    except FileNotFoundError:
        return 0
