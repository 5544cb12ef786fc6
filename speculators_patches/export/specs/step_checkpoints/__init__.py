"""Training can be stopped and goes on where it was: four pull requests, one on the other."""

from speculators_patches.export.spec import Spec
from speculators_patches.export.specs.step_checkpoints.steps import (
    ATOMIC,
    CADENCE,
    PRECISION,
    SIGNALS,
)

SPEC = Spec(
    name="step_checkpoints",
    related="#899 (open, float32 optimizer state, 2026-08-03), #739 (open, completeness marker, "
    "2026-07-08), #900 and #1049 for #1048 (open, schedulers at a resume, 2026-08-03 and 08-27), "
    "#1026 for #1027 (open, random state, 2026-08-21), #898 (closed, as of 2026-11)",
    steps=(PRECISION, ATOMIC, CADENCE, SIGNALS),
)
