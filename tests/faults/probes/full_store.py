"""What becomes of samples in a full Mooncake store: upstream's way, and ours. Prints JSON.

    python -m tests.faults.probes.full_store FOLDER

A real master with Mooncake's own settings, as a user starts one; a store of 32 MiB, samples of
2 MiB, four more than fit. Nobody reads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from hs_connectors.mooncake_store import (
    MooncakeHiddenStatesStore,
    MooncakeStoreConfig,
    packed_layout,
)

from recipes.mooncake_store import Patience, ProducerStore
from recipes.vllm import mooncake
from recipes.vllm.mooncake_probe import probe
from speculators_patches.mooncake_client import local_address
from tests.e2e.mooncake_here import free_port

MIB = 2**20
ROOM, SIZE = 32 * MIB, 2 * MIB
FITS = ROOM // SIZE
COUNT = FITS + 4


def manifest(number: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    sample = {"hidden_states": torch.full((SIZE,), number, dtype=torch.uint8)}
    layout, size = packed_layout({n: (tuple(t.shape), t.dtype) for n, t in sample.items()})
    metadata = {"total_aligned_bytes": size}
    return {"handle": f"s{number}", "version": 1, "tensors": layout, "metadata": metadata}, sample


def kept(store: Any) -> list[int]:
    raw = store._require_store()
    return [number for number in range(COUNT) if raw.is_exist(f"s{number}") == 1]


def upstreams(config: MooncakeStoreConfig) -> dict[str, list[int]]:
    """Puts all, one after the other, with time for Mooncake to act."""
    store = MooncakeHiddenStatesStore(config).setup()
    stored = []
    for number in range(COUNT):
        try:
            store.put_sample(*manifest(number))
            stored.append(number)
        except RuntimeError:
            pass  # it says so, at least
        time.sleep(0.2)
    return {"stored": stored, "kept": kept(store)}


def ours(config: MooncakeStoreConfig) -> dict[str, Any]:
    """The same; from the first that does not fit on in a thread, as the connector does."""
    # A little for the producer's sign of life is taken off the room.
    store = ProducerStore(config, Patience(room_s=60.0, unread_s=600.0), "producer-one").setup()
    stored: list[int] = []

    def put() -> None:
        for number in range(COUNT):
            store.put_sample(*manifest(number))
            stored.append(number)

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    while len(stored) < FITS - 1:
        time.sleep(0.05)
    time.sleep(2.0)
    full, there = list(stored), kept(store)
    while len(stored) < COUNT:  # a reader comes
        for number in kept(store):
            store.delete_sample(f"s{number}")
        time.sleep(0.05)
    return {"full": full, "kept": there, "stored": stored}


def main() -> None:
    folder = Path(sys.argv[1])
    found = []
    for name, play in (("upstream", upstreams), ("ours", ours)):
        port = free_port()
        command = [mooncake.require() / "mooncake_master", "-rpc_port", str(port)]
        command += ["-metrics_port", str(free_port()), "-logtostderr"]
        with (folder / f"{name}.log").open("wb") as log:
            master = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            address = f"127.0.0.1:{port}"
            while "error" in probe(address):
                time.sleep(0.2)
            config = MooncakeStoreConfig(
                local_hostname=local_address(address), master_server_address=address,
                global_segment_size=ROOM, local_buffer_size=16 * MIB,
            )  # fmt: skip
            found.append(play(config))
        finally:
            master.kill()
            master.wait()
    print(json.dumps(found), flush=True)
    os._exit(0)  # clients' threads have nothing left to say


if __name__ == "__main__":
    main()
