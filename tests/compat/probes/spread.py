"""Says in which processes of a run the patch `empty_sample_dtype` is in force (speculators 0.5.0).

    ... spread.py workers METHOD      DataLoader workers started by METHOD (spawn, forkserver, fork)
    ... spread.py children            subprocesses: -m, and a script that a -c starts
    ... spread.py ranks               under torchrun: both ranks (gloo) and their spawn workers
    ... spread.py here                this process only

Prints one JSON line: process -> float dtype of upstream's empty sample there. It is float32 in an
unpatched process and bfloat16 in a patched one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from speculators.train import data
from torch.utils.data import DataLoader, Dataset

HERE = str(Path(__file__).resolve())


def dtype_here() -> str:
    return str(data.create_empty_sample(4)["hidden_states"].dtype)


class Indices(Dataset[int]):
    """Lives in `__main__`, like the classes of a user's training script."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


def report(batch: list[int]) -> dict[str, Any]:
    """A collate function: runs in the worker."""
    return {"pid": os.getpid(), "dtype": dtype_here(), "main": sys.modules["__main__"].__name__}


def workers(method: str) -> dict[str, str]:
    loader = DataLoader(
        Indices(), batch_size=1, num_workers=2, collate_fn=report, multiprocessing_context=method
    )
    seen = {found["pid"]: found["dtype"] for found in loader}
    assert os.getpid() not in seen
    assert len(seen) == 2, seen
    return {"main": dtype_here()} | {f"worker {n}": seen[pid] for n, pid in enumerate(seen)}


def children() -> dict[str, str]:
    """The script is a child of the `-c` child, so it is patched only if that one is too."""
    nested = (
        f"import subprocess, sys; subprocess.run([sys.executable, {HERE!r}, 'here'], check=True)"
    )
    asked = {
        "-m": [sys.executable, "-u", "-m", "tests.compat.probes.spread", "here"],
        "script from -c": [sys.executable, "-c", nested],
    }
    found = {"main": dtype_here()}
    for name, command in asked.items():
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[name] = json.loads(out)["here"]
    return found


def ranks() -> dict[str, str]:
    torch.distributed.init_process_group("gloo")
    mine = {f"rank {torch.distributed.get_rank()} {name}": dtype
            for name, dtype in workers("spawn").items()}  # fmt: skip
    both: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(both, mine)
    torch.distributed.destroy_process_group()
    return {name: dtype for found in both for name, dtype in found.items()}


def main() -> None:
    what, *rest = sys.argv[1:]
    found = {
        "workers": lambda: workers(*rest),
        "children": children,
        "ranks": ranks,
        "here": lambda: {"here": dtype_here()},
    }[what]()
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(found))


if __name__ == "__main__":
    main()
