"""speculators-patches: repairs vllm-project/speculators (and what it runs on) from outside.

    import speculators_patches
    report = speculators_patches.apply()   # before upstream's objects are built
    ...
    speculators_patches.revert()

Importing this package imports neither torch nor upstream and changes nothing.
"""

from speculators_patches.overlay import PatchRefused, UnknownPatch, apply, revert, status
from speculators_patches.registry import Patch, Target
from speculators_patches.report import Report, Row, Verdict

__all__ = [
    "Patch",
    "PatchRefused",
    "Report",
    "Row",
    "Target",
    "UnknownPatch",
    "Verdict",
    "apply",
    "revert",
    "status",
]
