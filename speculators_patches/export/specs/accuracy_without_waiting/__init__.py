"""The accuracy of a position is counted without asking the GPU how many tokens count."""

from speculators_patches.export import code
from speculators_patches.export.edits import body
from speculators_patches.export.spec import Spec, Step

_COUNT = "compute_accuracy_single_step"

SPEC = Spec(
    name="accuracy_without_waiting",
    steps=(
        Step(
            slug="accuracy-without-sync",
            subject="perf(metrics): count accuracy without masked_select",
            problem="""
                `compute_accuracy_single_step` picks the judged tokens with `masked_select`. How
                many elements that gives is known on the GPU only, so at every TTT position of every
                step the host waits for all that is queued, and the compiled forward pass is cut in
                two, only to count how many drafts were right.
                """,
            fix="""
                Take the same counts from a logical and with the mask: `full_correct` is the sum of
                what is right and masked in, `full_total` the sum of the mask. All four numbers keep
                value, dtype and device, and `prev_correct` is updated in place as before.
                """,
            risk="""
                Counts do not change. The compiled graphs become larger, since they are no longer
                cut here. On an H100 (EAGLE-3 at 4096 tokens, 3 TTT steps, torch 2.11) a step takes
                46.9 instead of 50.8 ms, and the trained weights are bitwise the same after 78
                steps; another torch may fuse across the old cut in another order.
                `compute_accuracy_multi_step`, which DFlash uses, has the same pattern and is left
                alone.
                """,
            reproduction="reproduce.py",
            files={
                "models/metrics.py": (
                    body(
                        _COUNT,
                        code.body_of(code.ours("patches.accuracy_without_waiting", _COUNT)),
                    ),
                )
            },
            tests={"tests/unit/models/test_accuracy_without_sync.py": "test_without_sync.py"},
            differs="the same function body, taken from the overlay",
        ),
    ),
)
