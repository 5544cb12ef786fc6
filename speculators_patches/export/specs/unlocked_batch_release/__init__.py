"""What a worker's batch lay in is given back to the system without Python's lock."""

from speculators_patches.export import code
from speculators_patches.export.edits import imports, insert, statement
from speculators_patches.export.source import Match
from speculators_patches.export.spec import Spec, Step

_CODE = "unlocked_batch_release/code_data.py"

SPEC = Spec(
    name="unlocked_batch_release",
    related="pytorch #77139 (open, 2022-05-10) and pytorch #91353 (open, 2022-12-23): the pinning "
    "thread's munmap",
    steps=(
        Step(
            slug="unlocked-batch-release",
            subject="perf(data): free pinned batches' shared memory without the GIL",
            problem="""
                A DataLoader worker hands its batch over in shared memory (92 MB for EAGLE-3 at
                hidden size 2816 and 4096 tokens), and a thread of the trainer copies it to pinned
                memory. When the tensors go, torch unmaps and frees those pages with the GIL held
                (pytorch #77139, #91353, open), for 7 ms of each step on a two-core machine. The
                training loop cannot launch kernels meanwhile.
                """,
            fix="""
                The batch is a dict with a `pin_memory` method, which torch's loaders call. It pins
                the tensors, takes the pages of those that came from a worker out of the process
                (`madvise`), lets torch unmap what is empty then, and closes the last descriptor of
                the memory. The first and the last do not hold the GIL, and take nearly all the
                time.
                """,
            risk="""
                `UntypedStorage._share_fd_cpu_` and the module of `pin_memory` are private to torch.
                The worker's tensors are empty after pinning; only the pinning thread has them.
                Without workers, or where torch shares by file name (macOS), nothing changes.
                Batches are bitwise the same.
                """,
            reproduction="reproduce.py",
            files={
                "train/data.py": (
                    imports(
                        "import ctypes",
                        "import mmap",
                        "import os",
                        "from contextlib import ExitStack, suppress",
                        "from torch.utils.data._utils.pin_memory import pin_memory",
                    ),
                    insert(
                        code.ours("patches.unlocked_batch_release", "release").replace(
                            "def release(", "def _release_shared("
                        ),
                        before="CollateFn",
                    ),
                    insert(code.definition(_CODE, "PackedBatch"), before="CollateFn"),
                    statement(
                        "CollateFn.__call__",
                        Match("return", "collated_data"),
                        "return PackedBatch(collated_data)",
                        where="instead",
                    ),
                )
            },
            tests={"tests/unit/train/test_batch_release.py": "test_batch_release.py"},
            differs="the same class and function, around upstream's own collating",
        ),
    ),
)
