"""The forward pass makes its two constants on the GPU instead of waiting for it twice."""

from speculators_patches.export.edits import expression
from speculators_patches.export.spec import Spec, Step
from speculators_patches.patches.accumulators_on_device import CHANGES

_FORWARD = "Eagle3DraftModel.forward"

SPEC = Spec(
    name="accumulators_on_device",
    steps=(
        Step(
            slug="accumulators-on-device",
            subject="perf(eagle3): start the loss on the device",
            problem="""
                `Eagle3DraftModel.forward` starts the sum of its losses with
                `torch.tensor(0.0, device=device)` and counts it with
                `torch.tensor(1.0, device=device)`. A number made that way is copied from the host,
                and the copy waits until the GPU has done all that is queued. So in every step the
                host loses the lead that it won while the GPU worked on the backward pass, and then
                the GPU waits for it: the forward pass launches many small kernels.
                """,
            fix="""
                Fill the two numbers on the device, with `torch.zeros` and `torch.ones`, which only
                puts one more kernel behind what is queued there.
                """,
            risk="""
                None known: value, dtype, device and shape stay, and losses, metrics and weights are
                bitwise the same on a CPU and on a GPU. On an H200 (ttt_steps 3, 4096 tokens) a step
                whose other waits are gone takes 0.95 of the time. Steps that are logged synchronize
                anyhow (`--log-freq`), so it helps those between them.
                """,
            reproduction="reproduce.py",
            files={
                "models/eagle3/core.py": tuple(
                    expression(_FORWARD, old, new) for old, new in CHANGES.items()
                )
            },
            tests={"tests/unit/models/test_accumulators.py": "test_accumulators.py"},
            differs="the same two expressions, replaced in upstream's source as it is loaded",
        ),
    ),
)
