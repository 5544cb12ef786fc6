"""vLLM comes up 3 s after training asked for its first sample
(run where this PR's test file is)."""

import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, "tests/unit/train")
from test_wait_for_vllm import Server, free_port, open_dataset

folder = Path(tempfile.mkdtemp())
port = free_port()
dataset = open_dataset(folder, port)
threading.Timer(3, lambda: Server(folder, port)).start()
sample = dataset[0]
if not isinstance(sample, dict):
    print(f"DEFECT: the sample is left out: {sample.reason}")
    sys.exit(1)
print(f"OK: {tuple(sample['hidden_states'].shape)}")
