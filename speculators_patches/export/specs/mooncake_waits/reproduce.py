"""A real Mooncake master is killed and comes back after 10 s while a sample is read."""

import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("GLOG_minloglevel", "3")

import mooncake
import torch
from hs_connectors.mooncake_store import (
    VERSION,
    MooncakeHiddenStatesStore,
    MooncakeStoreConfig,
    packed_layout,
)
from speculators.train.recovery import GenerationRecoveryGuard, SampleUnavailable


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


AWAY_S = 10
PORTS = [str(free_port()) for _ in range(2)]
MASTER = str(Path(mooncake.__path__[0]) / "mooncake_master")


def start_master():
    words = ["-rpc_address", "127.0.0.1", "-rpc_port", PORTS[0]]
    words += ["-metrics_host", "127.0.0.1", "-metrics_port", PORTS[1]]
    log = Path(tempfile.mkdtemp(), "log").open("w")
    master = subprocess.Popen([MASTER, *words], stdout=log, stderr=log)
    while master.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", int(PORTS[0])), 1).close()
            return master
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the master does not start")


def client():
    size = 16 << 20
    address = f"127.0.0.1:{PORTS[0]}"
    return MooncakeHiddenStatesStore(
        MooncakeStoreConfig(
            local_hostname="127.0.0.1",
            master_server_address=address,
            global_segment_size=size,
            local_buffer_size=size,
        )
    ).setup()


masters = [start_master()]
producer, reader = client(), client()
tensors = {"hidden_states": torch.randn(5, 4, 8), "token_ids": torch.arange(5)}
layout, size = packed_layout({n: (tuple(t.shape), t.dtype) for n, t in tensors.items()})
asked = 0


def round_trip():
    """As with vLLM: the answer comes first, the sample is stored if that works."""
    global asked
    asked += 1
    manifest = {"handle": f"sample{asked}", "version": VERSION, "tensors": layout}
    manifest["metadata"] = {"total_aligned_bytes": size}

    def store():
        try:
            producer.put_sample(manifest, tensors)
        except RuntimeError:
            pass

    threading.Thread(target=store, daemon=True).start()
    return reader.get_sample(manifest)


def run():
    guard = GenerationRecoveryGuard(retries=2, max_consecutive_failures=20)
    return guard.run(round_trip, description="sample")


assert not isinstance(run(), SampleUnavailable)
masters[0].kill()
masters[0].wait()
threading.Timer(AWAY_S, lambda: masters.append(start_master())).start()
began, asked = time.monotonic(), 10
sample = run()
took = f"after {asked - 10} attempts in {time.monotonic() - began:.0f} s"
time.sleep(max(0.0, began + AWAY_S + 2 - time.monotonic()))
for master in masters:
    master.kill()
if isinstance(sample, SampleUnavailable):
    print(f"DEFECT: away for {AWAY_S} s, the sample is left out {took}", flush=True)
    os._exit(1)
print(f"OK: away for {AWAY_S} s, the sample is there {took}", flush=True)
os._exit(0)  # Mooncake's own threads may take their time
