"""What can go wrong, each with one sentence that a person can act on."""

from __future__ import annotations


class CheckpointError(Exception):
    """Base of every error of this package; its text is one clear sentence."""


class CorruptError(CheckpointError):
    """A checkpoint (or one file of it) is torn or altered; the text names it and says how."""


class NotSameRunError(CheckpointError):
    """The checkpoint belongs to a run with other settings; resuming would be silently wrong."""


class StoreBusyError(CheckpointError):
    """Another live process writes checkpoints into the same folder."""


class UnfitError(CheckpointError):
    """A state that must not be saved (a NaN in it); nothing was written. The text says what."""


class SaveFailedError(CheckpointError):
    """A checkpoint could not be written; the previous ones are untouched."""
