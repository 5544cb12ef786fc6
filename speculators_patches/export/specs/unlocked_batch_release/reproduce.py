"""Whether a pinned batch still holds the shared memory that its worker sent it in
(run where this PR's test file is)."""

import sys

sys.path.insert(0, "tests/unit/train")
from test_batch_release import collated, pin, sent

batch = sent(collated())
pin(batch)
left = batch["hidden_states"].untyped_storage().nbytes()
if left:
    print(f"DEFECT: {left} bytes are left to be unmapped with the GIL held")
    sys.exit(1)
print("OK: nothing is left to be unmapped with the GIL held")
