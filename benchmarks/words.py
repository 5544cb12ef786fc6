"""The report in a few lines for a terminal: verdicts, speed, what to serve with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.report_sections import sections
from benchmarks.schema import Results

_SHOWN = ("Can these numbers be believed?", "Speed", "Drafters compared", "What to serve with")


def spoken(results: Results, summary: dict[str, Any]) -> Iterator[str]:
    """The paragraphs of the report's first sections, and the flags to serve with."""
    for section in sections(results, summary):
        if section.title in _SHOWN:
            yield f"\n{section.title}"
            yield from section.paragraphs
            yield from section.notes
            if section.title == "What to serve with":
                yield from section.code
