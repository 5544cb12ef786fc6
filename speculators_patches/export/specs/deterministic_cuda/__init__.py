"""A flag that promises deterministic kernels gives them."""

from speculators_patches.export import code
from speculators_patches.export.edits import imports, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="deterministic_cuda",
    steps=(
        Step(
            slug="deterministic-cuda",
            subject="fix(train): --deterministic-cuda covers more than cuDNN",
            problem="""
                `--deterministic-cuda` sets `cudnn.deterministic` and `cudnn.benchmark`, and the
                drafters run no cuDNN kernel. What differs from run to run is left as it was:
                inductor chooses the tiles of its reductions by timing them, some operations add
                with atomics, and cuBLAS may use another workspace. On an H100 two runs of one
                command (EAGLE-3, flex attention, torch 2.11) had other losses in the fifth digit
                within 12 steps. The flag is what one reaches for to tell a bug from noise.

                Besides, the keys grow with each TTT step, so dynamo compiles the layer for the
                first length, then once more for any, and the general code also serves the first
                length from the second step on. The first step of a process thus runs other kernels
                than each later one, and a resumed run differs from one that was not stopped.
                """,
            fix="""
                The flag also calls `torch.use_deterministic_algorithms(True)`, which from torch
                2.10 on includes inductor's deterministic mode, and sets `CUBLAS_WORKSPACE_CONFIG`
                to the value that this asks for unless it is set already. Dynamo compiles for each
                length by itself (`automatic_dynamic_shapes` off, `recompile_limit` 64), except for
                P-EAGLE, whose length is another one at each step.
                """,
            risk="""
                Nothing changes without the flag. With it an operation that has no deterministic
                kernel raises with its name (EAGLE-3 has none), and training is slower: with
                it a step on an H200 took 54 instead of 47 ms, most of the difference spent on the
                host. Inputs whose length varies are compiled for each length; P-EAGLE's are not,
                and its first step after a resume still runs other code. An EAGLE-3 run on an H200,
                killed and resumed, had the weights of one that was left alone, bitwise. The fused
                losses are not covered: their Triton kernels choose their tile by timing whatever
                the mode.
                """,
            reproduction="reproduce.py",
            files={
                "train/cli.py": (
                    imports("import os"),
                    statement(
                        "set_seed",
                        Match("assign", "torch.backends.cudnn.benchmark"),
                        code.inside("deterministic_cuda/code_cli.py", "algorithms"),
                        where="after",
                    ),
                )
            },
            tests={"tests/unit/train/test_deterministic_cuda.py": "test_deterministic_cuda.py"},
            differs="the same settings, made after upstream's function",
        ),
    ),
)
