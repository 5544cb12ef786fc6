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
                vLLM answers a request when its hidden states are computed; the connector writes the
                file with the next step, in a thread, under a lock. A reader that finds the file
                locked sleeps for 0.1 s in `wait_for_lock`, however soon it is written: a row of 900
                tokens is 20 MB. How often that happens on a GPU was not measured; in
                small on a CPU it did not.
                """,
            fix="""
                Look for the lock every 5 ms by default. `poll_interval` stays a parameter, and the
                time-out stays 10 s.
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
