"""Asks a Mooncake store for one thing, in a process of its own: its client has threads that stay.

    python -m recipes.vllm.store_probe MASTER            # put, get and remove 1 MB
    python -m recipes.vllm.store_probe MASTER MANIFEST   # a sample's shape; then removes it

Prints one line of JSON, {"error": "..."} and exit code 1 where something is wrong.
"""

from __future__ import annotations

import array
import json
import os
import sys
import time
import uuid
from typing import Any

from speculators_patches.mooncake_client import local_address

# dtype -> (array type code, bits that are all ones in an infinity or a NaN)
_EXPONENTS = {
    "torch.bfloat16": ("H", 0x7F80),
    "torch.float16": ("H", 0x7C00),
    "torch.float32": ("I", 0x7F800000),
}
_MIB = 2**20
_WAIT_S = 30.0


def connected(master: str, segment: int) -> Any:
    """A client of the store; `segment` bytes of memory for others.

    Raises:
        RuntimeError: it cannot be reached.
    """
    try:
        host = local_address(master)
    except OSError as error:
        raise RuntimeError(f"its master takes no connection ({error})") from None
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    status = store.setup(host, "P2PHANDSHAKE", segment, 16 * _MIB, "tcp", "", master)
    if status:
        raise RuntimeError(f"a client could not be set up (status {status})")
    return store


def round_trip(store: Any) -> dict[str, Any]:
    """Puts 1 MB, reads it back, removes it.

    Raises:
        RuntimeError: one of these failed.
    """
    key, value = f"probe-{uuid.uuid4()}", os.urandom(_MIB)
    for what, status in (("put", store.put(key, value)), ("exist", store.is_exist(key) - 1)):
        if status:
            raise RuntimeError(f"1 MB could not be stored ({what}: status {status})")
    if store.get(key) != value:
        raise RuntimeError("1 MB did not come back as it was put")
    status = store.remove(key, True)
    if status:
        raise RuntimeError(f"1 MB could not be removed (status {status})")
    return {"bytes": _MIB}


def sample(store: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """Shape of a sample's hidden states, and whether they are finite; it is removed.

    Raises:
        RuntimeError: it does not appear.
    """
    key, spec = manifest["handle"], manifest["tensors"]["hidden_states"]
    deadline = time.monotonic() + _WAIT_S
    while store.is_exist(key) != 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the sample {key} did not appear within {_WAIT_S:.0f} s")
        time.sleep(0.02)
    data = store.get(key)
    store.remove(key, True)
    code, exponent = _EXPONENTS[spec["dtype"]]
    values = array.array(code, data[spec["offset"] : spec["offset"] + spec["nbytes"]])
    return {
        "shape": list(spec["shape"]),
        "finite": all(value & exponent != exponent for value in values),
    }


def main() -> None:
    master, *manifest = sys.argv[1:]
    try:
        store = connected(master, 0 if manifest else 16 * _MIB)
        try:
            found = sample(store, json.loads(manifest[0])) if manifest else round_trip(store)
        finally:
            store.close()  # else others' samples may be sent to its memory for 10 s
    except (RuntimeError, ImportError, KeyError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        os._exit(1)
    print(json.dumps(found), flush=True)
    os._exit(0)  # the client's threads have nothing left to say


if __name__ == "__main__":
    main()
