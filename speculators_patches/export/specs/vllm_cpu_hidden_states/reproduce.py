# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM project
"""Save the hidden states of one request from a KV cache in host memory
(run where this PR's test file is)."""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, "tests/v1/kv_connector/unit")
from test_cpu_hidden_states import make_connector, save

folder = Path(tempfile.mkdtemp())
try:
    found = save(make_connector(), folder / "r.safetensors", blocks=[2, 0], tokens=6)
except Exception as error:
    print(f"DEFECT: {type(error).__name__}: {str(error).splitlines()[0]}")
    sys.exit(1)
print(f"OK: {tuple(found['hidden_states'].shape)} written")
