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
    related="#899 (open, float32 optimizer state), #739 (open, completeness marker), "
    "#900, #1048, #1049 (open, scheduler and distributed resume), #1026, #1027 (open, random state)",
    steps=(PRECISION, ATOMIC, CADENCE, SIGNALS),
)
