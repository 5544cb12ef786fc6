"""Operations of one extension of the mask over 1024 tokens
(run where this PR's test file is)."""

import sys

sys.path.insert(0, "tests/unit/models")
from test_extend_draft_mask import count_operations

count = count_operations()
if count > 200:
    print(f"DEFECT: {count} operations to extend the mask by one position")
    sys.exit(1)
print(f"OK: {count} operations to extend the mask by one position")
