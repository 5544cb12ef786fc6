"""A sample that vLLM is still writing is looked for every 5 ms instead of every 100."""

from speculators_patches.export.edits import expression
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="quick_lock_waits",
    package="hs_connectors",
    steps=(
        Step(
            slug="look-for-locks-more-often",
            subject="perf(hs): look for a sample's lock every 5 ms",
            problem="""
                vLLM answers a request when its hidden states are computed, and writes the file
                behind that, under a lock. So the reader finds the file locked nearly always, and
                `wait_for_lock` then sleeps for 0.1 s, however soon the file is written: 20 MB for
                a row of 900 tokens take a few hundredths of a second. That sleep is in every
                sample of online training with files.
                """,
            fix="""
                Look for the lock every 5 ms by default, which is about what the wait itself is
                good for. `poll_interval` stays a parameter, and the time-out stays 10 s.
                """,
            risk="""
                20 times as many `flock` calls while a file is being written. On a network file
                system each is a round trip, some 200 a second for each worker that waits.
                """,
            reproduction="reproduce.py",
            files={
                "transfer.py": (expression("wait_for_lock", "0.1", "0.005"),),
            },
            tests={"tests/unit/hs_connectors/test_lock_wait.py": "test_lock_wait.py"},
            differs="the overlay calls upstream's function with the smaller interval",
        ),
    ),
)
