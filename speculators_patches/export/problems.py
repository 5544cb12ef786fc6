"""What can be wrong with an export; each is one sentence for the user."""

from __future__ import annotations


class ExportError(RuntimeError):
    """The export can't go on; the text says what was wrong, where, and what to do."""


class DoesNotFit(ExportError):
    """The tree's source is not what the change was written for."""
