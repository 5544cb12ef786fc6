"""The fused loss at two TTT positions in one compiled graph, with torch 2.11's line in
dynamo (run where this PR's test file is)."""

import sys

sys.path.insert(0, "tests/unit/models")
from test_fused_loss_trace import trace

said, failed = trace("2.11")
if not said:
    reasons = [line for line in failed.splitlines() if "tracked for mutation" in line]
    print(f"DEFECT: {reasons[0].partition('. ')[0] if reasons else failed[-200:]}")
    sys.exit(1)
print(f"OK: {said.strip()} of the fused loss are traced")
