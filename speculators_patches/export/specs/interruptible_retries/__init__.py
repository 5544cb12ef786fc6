"""A signal that arrives inside a retry guard ends the run."""

from speculators_patches.export.edits import bases, docstring
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="interruptible_retries",
    related="#501 (merged, 2026-05-12: the handler), #969 (merged, after 2026-08-27: the guards)",
    steps=(
        Step(
            slug="interrupt-retry-guards",
            subject="fix(train): let a signal through the retry guards",
            problem="""
                With `--num-workers 0` the trainer asks vLLM for hidden states in its own process.
                Ctrl+C or SIGTERM then raises `TrainingInterruptedError` inside the request, where
                the OpenAI client, `with_retries` and `GenerationRecoveryGuard` each catch every
                `Exception`: the signal is counted as one more failed request. Later signals are
                ignored, because the handler takes the first one to be on its way, so the run can
                only be killed, and nothing is saved.
                """,
            fix="""
                Derive `TrainingInterruptedError` from `BaseException`, as `KeyboardInterrupt` and
                `asyncio.CancelledError` are and for the same reason. `with_graceful_shutdown`
                catches it by name and needs no change.
                """,
            risk="""
                Code that relied on `except Exception` to swallow the interrupt no longer does; that
                is the point. A third party that catches `TrainingInterruptedError` by name is not
                affected.
                """,
            reproduction="reproduce.py",
            files={
                "train/graceful_shutdown.py": (
                    bases("TrainingInterruptedError", "BaseException"),
                    docstring(
                        "TrainingInterruptedError",
                        """
                        Raised by the signal handler to interrupt training for checkpoint save.

                        Not an ``Exception``: the retry guards around a request for hidden states
                        catch those and would take the interrupt for a failed request.
                        """,
                    ),
                )
            },
            tests={"tests/unit/train/test_interrupt_in_retry.py": "test_interrupt_in_retry.py"},
            differs="the same class",
        ),
    ),
)
