"""Temperatures, top-k and top-p reach the rejection sampler when vLLM runs on a CPU."""

from speculators_patches.export import code
from speculators_patches.export.edits import body
from speculators_patches.export.spec import Spec, Step

SPEC = Spec(
    name="vllm_cpu_sampling",
    package="vllm",
    related="vllm#55005 (open, 2026-09-02), vllm#55006 (open, 2026-09-02), "
    "vllm#42638 (closed, 2026-05-14)",
    steps=(
        Step(
            slug="cpu-expand-kernel",
            subject="[Bugfix][CPU] Write expanded sampling parameters to the caller's tensor",
            problem="""
                On a CPU every speculative method samples with uninitialised memory as temperature,
                top-k and top-p: answers at T > 0 are garbled and often never end. The stand-in for
                the Triton kernel that repeats one value per request for each of its draft tokens
                converts its output to int64 first and fills the copy. The caller's tensor, from
                `new_empty`, is never written, and float inputs would be cut to integers besides.
                Greedy requests do not read the result, so T = 0 looks right.
                """,
            fix="""
                Expand with `torch.repeat_interleave` in the input's own dtype and copy the result
                into `output`. The C++ op is no longer needed here; other stand-ins of this file
                that call C++ with int64 copies do write them back.
                """,
            risk="""
                Only the CPU backend registers this function. A test compares it with what the
                Triton kernel computes for every dtype that the rejection sampler passes.

                vllm#55006 makes the same correction in the same function and was there first: where
                it is merged nothing is left to do here. This is for whoever needs it before that;
                its tests may be of use there.
                """,
            reproduction="reproduce.py",
            files={
                "utils/cpu_triton_utils.py": (
                    body(
                        "_expand_kernel_impl",
                        code.body_of(code.ours("patches.vllm_cpu_sampling", "expand_kernel_impl")),
                    ),
                )
            },
            tests={"tests/v1/sample/test_cpu_expand_kernel.py": "test_cpu_expand_kernel.py"},
            differs="the same function body, taken from the overlay",
        ),
    ),
)
