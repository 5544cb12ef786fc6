"""A host of `test_slow_store`: the producer of one sample, or its reader.

    python -m tests.e2e.slow_store_host ROLE          # one line of JSON in, one out, until it ends

Real Mooncake and this project's store and reader; no vLLM and no training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from hs_connectors.mooncake_store import (
    VERSION,
    MooncakeHiddenStatesStore,
    MooncakeStoreConfig,
    packed_layout,
)
from hs_connectors.transfer import MooncakeTransfer

from recipes.mooncake_store import Patience, ProducerStore
from recipes.process import end_with_parent
from recipes.vllm import mooncake
from recipes.vllm.mooncake_master import master_command
from speculators_patches import apply
from speculators_patches.mooncake_client import local_address

SIZE = 2_000_000  # bytes of a sample
_Do = dict[str, Callable[[], dict[str, Any]]]


def made(handle: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """A sample's manifest and the sample."""
    sample = {"hidden_states": torch.arange(SIZE // 8)}
    layout, size = packed_layout({n: (tuple(t.shape), t.dtype) for n, t in sample.items()})
    metadata = {"total_aligned_bytes": size, "producer": "producer-one"}
    return {"handle": handle, "version": VERSION, "tensors": layout, "metadata": metadata}, sample


def config(master: str, room: int) -> MooncakeStoreConfig:
    return MooncakeStoreConfig(
        local_hostname=local_address(master), master_server_address=master,
        global_segment_size=room, local_buffer_size=16 << 20,
    )  # fmt: skip


def producer(given: dict[str, Any]) -> _Do:
    """Starts a master and puts the sample; says whether it keeps it; removes it by force."""
    port = int(given["master"].rpartition(":")[2]) + 1
    command = master_command(given["master"], port, mooncake.require())
    subprocess.Popen(
        [*command, *given["flags"]], stderr=subprocess.DEVNULL, preexec_fn=end_with_parent
    )
    until = time.monotonic() + 30
    while True:
        try:
            where = config(given["master"], 64 << 20)
            break
        except OSError:
            assert time.monotonic() < until, "the master does not start"
            time.sleep(0.1)
    store = ProducerStore(where, Patience(unread_s=given["unread_s"]), "producer-one").setup()
    pinned = store._require_store()

    def put() -> dict[str, Any]:
        store.put_sample(*made("sample"))
        return {}

    return {
        "put": put,
        # Without asking Mooncake, which would lease it once more.
        "look": lambda: {"gone": not pinned._put},
        "remove": lambda: {"status": pinned._store.remove("sample", True)},
    }


def reader(given: dict[str, Any]) -> _Do:
    """Reads the sample as the patched trainer does, or only looks for it."""
    apply(only=("mooncake_waits",))
    transfer = MooncakeTransfer(MooncakeHiddenStatesStore(config(given["master"], 0)))
    transfer.setup()

    def read() -> dict[str, Any]:
        manifest, sample = made("sample")
        began = time.monotonic()
        try:
            states = transfer.get_generated(manifest)["hidden_states"]
            found: dict[str, Any] = {"same": torch.equal(states, sample["hidden_states"])}
        except Exception as error:  # noqa: BLE001  (whatever it is, the test wants to know)
            found = {"error": f"{type(error).__name__}: {error}"}
        return found | {"seconds": time.monotonic() - began}

    return {
        "read": read,
        "look": lambda: {"there": transfer.store._require_store().is_exist("sample")},
    }


def main() -> None:
    known = {"producer": producer, "reader": reader}[sys.argv[1]](json.loads(sys.stdin.readline()))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(known[json.loads(line)["do"]]()), flush=True)
    os._exit(0)  # Mooncake's threads have nothing left to say


if __name__ == "__main__":
    main()
