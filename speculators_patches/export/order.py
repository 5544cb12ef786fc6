"""Which of the exported pull requests change the same lines, so that each can say so.

Each applies to a release by itself. Of a pair the second needs a few lines put right once the first
is merged.
"""

from __future__ import annotations

from speculators_patches.export import spec
from speculators_patches.export.spec import Step

# First and second, as slugs.
SAME_LINES = (
    ("accumulators-on-device", "mask-unsayable"),
    ("accumulators-on-device", "val-expected-acceptance"),
    ("ttt-accuracy-denominators", "mask-unsayable"),
    ("val-expected-acceptance", "mask-unsayable"),
    ("guard-cached-samples", "several-vllm-endpoints"),
    ("guard-cached-samples", "wait-for-vllm"),
    ("several-vllm-endpoints", "wait-for-vllm"),
    ("train-on-cpu", "skip-empty-batches"),
    ("skip-non-finite-steps", "skip-empty-batches"),
    ("skip-non-finite-steps", "resumable-interrupt"),
    ("skip-empty-batches", "resumable-interrupt"),
    ("unlocked-batch-release", "wait-for-vllm"),
)


def sentences(step: Step) -> str:
    """One for each pull request that changes lines of this one; "" if there is none."""
    steps = {each.slug: each for item in spec.table().values() for each in item.steps}
    found = []
    for first, second in SAME_LINES:
        if step.slug not in (first, second):
            continue
        is_first = step.slug == first
        other = steps[second if is_first else first]
        files = sorted(set(step.files) & set(other.files))
        where = "before" if is_first else "after"
        found.append(
            f'Meets "{other.subject}" in {", ".join(f"`{name}`" for name in files)}; suggested '
            f"order: {where} it. Each applies without the other, the second to be merged needs a "
            "rebase."
        )
    return "\n\n".join(found)
