"""Ctrl+C and SIGTERM end a run that is waiting for vLLM.

Upstream's signal handler raises `TrainingInterruptedError`, an `Exception`. With `--num-workers 0`
it is raised inside the request for hidden states, where three guards catch every `Exception`: the
OpenAI client (as a connection error), `with_retries` and `GenerationRecoveryGuard`. The signal is
taken for one more failed request, and every later one is ignored because the first is "being
handled". Derived from `BaseException`, as KeyboardInterrupt is, it passes them all; upstream's own
`except TrainingInterruptedError` finds the class by its name at run time.

0.5.0 has no such handler. In 0.6 and 0.7 the same class meets a guard of the same kind in the data
set.
"""

from __future__ import annotations

from collections.abc import Mapping

from packaging.specifiers import SpecifierSet

from speculators_patches.registry import Patch, Target

_CLASS = "speculators.train.graceful_shutdown:TrainingInterruptedError"

PATCH = Patch(
    name="interruptible_retries",
    defect="Ctrl+C or SIGTERM while the trainer waits for vLLM (--num-workers 0) is taken for a "
    "failed request, and later signals are ignored.",
    needed=SpecifierSet(">=0.6.0"),
    targets=(
        Target(
            "speculators.train.graceful_shutdown",
            "TrainingInterruptedError",
            fingerprints={">=0.6.0,<0.9.1": "79074322c96c2c10"},
        ),
        # It raises the class, and with_graceful_shutdown catches it, by global name.
        Target(
            "speculators.train.graceful_shutdown",
            "GracefulShutdownHandler._handler",
            fingerprints={">=0.6.0,<0.9.1": "6bfc9c699561d40c"},
            observed=True,
        ),
        Target(
            "speculators.train.graceful_shutdown",
            "with_graceful_shutdown",
            fingerprints={">=0.6.0,<0.9": "42f250ea446d1eea", "==0.9.0": "0a332e892b794ddb"},
            observed=True,
        ),
    ),
    upstream="no issue found",
    fixed_in=None,
    remove_when="upstream's TrainingInterruptedError is no Exception, or its guards let it pass",
    proof="tests/faults/test_interruptible_retries.py::test_a_signal_ends_a_run_that_waits_for_vllm",
    tested=("0.8.1", "0.9.0"),
)


class TrainingInterruptedError(BaseException):
    """Raised by the signal handler; not an `Exception`, so that no retry guard can catch it."""


def replacements(originals: Mapping[str, object]) -> Mapping[str, object]:
    """See `registry`."""
    return {_CLASS: TrainingInterruptedError}
