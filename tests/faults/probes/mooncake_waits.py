"""What upstream's data set makes of a Mooncake store that fails in chosen ways. Prints JSON.

    python -m tests.faults.probes.mooncake_waits FOLDER PATCH [...]

A real master and real clients over TCP; only the server that puts the samples is scripted.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recipes.vllm import processes
from recipes.vllm.mooncake_master import Master
from speculators_patches import apply
from tests.faults import tiny
from tests.faults.probes.producer import show
from tests.faults.probes.scripted_producer import ScriptedProducer, states

MIB = 2**20


class StoringProducer(ScriptedProducer):
    """Puts samples into a store as `recipes.mooncake_hidden_states` does.

    Manners besides the usual ones: late, a second after the answer; lost, never, by a producer that
    is gone; killed, as promised, and then the master is killed; said, with what is wrong with it.
    """

    def __init__(self, folder: Path, master: Master) -> None:
        from hs_connectors.mooncake_store import MooncakeStoreConfig

        from recipes.mooncake_store import Patience, ProducerStore

        config = MooncakeStoreConfig(
            master_server_address=master.address, global_segment_size=16 * MIB,
            local_buffer_size=16 * MIB,
        )  # fmt: skip
        self.master, self.name = master, "producer-one"
        self.store = ProducerStore(config, Patience(), self.name).setup()
        super().__init__(folder)

    def _answer(self, prompt: tuple[int, ...], manner: str) -> dict[str, Any]:
        from hs_connectors.mooncake_store import packed_layout

        answer = super()._answer(prompt, "missing")
        sample = {"hidden_states": states(prompt), "token_ids": torch.tensor(prompt)}
        layout, size = packed_layout({n: (tuple(t.shape), t.dtype) for n, t in sample.items()})
        manifest = {
            "handle": Path(answer["kv_transfer_params"]["hidden_states_path"]).stem,
            "version": 1,
            "tensors": layout,
            "metadata": {
                "total_aligned_bytes": size,
                "producer": "producer-gone" if manner == "lost" else self.name,
            },
        }
        if manner == "said":
            self.store.put_error(manifest, "it is not finite")
        elif manner == "late":
            threading.Timer(1.0, self.store.put_sample, (manifest, sample)).start()
        elif manner != "lost":
            self.store.put_sample(manifest, sample)
        if manner == "killed":
            processes.send(9, self.master.pids())
            while not self.master.pids() or not self.master._answers():  # the watch restarts it
                time.sleep(0.05)
        return answer | {"kv_transfer_params": manifest}


def away(server: StoringProducer, prompt: tuple[int, ...]) -> None:
    """Stopped, and going on a moment later."""
    pids = server.master.pids()
    processes.send(19, pids)
    threading.Timer(2.0, processes.send, (18, pids)).start()


def planned(*manners: str) -> Callable[[StoringProducer, tuple[int, ...]], None]:
    return lambda server, prompt: server.plan.update({prompt: list(manners)})


def nameless(make: Callable[[], Any]) -> str:
    """What comes of it on a machine whose own name does not resolve."""

    def unknown(name: str) -> str:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    real, told = socket.gethostbyname, os.environ.pop("MOONCAKE_LOCAL_HOSTNAME")
    socket.gethostbyname = unknown
    try:
        make()
    except OSError as error:
        return type(error).__name__
    finally:
        left = os.environ.get("MOONCAKE_LOCAL_HOSTNAME")
        socket.gethostbyname, os.environ["MOONCAKE_LOCAL_HOSTNAME"] = real, told
    return "made" if left is None else f"made, and told {left}"


SCENARIOS: dict[str, Callable[[StoringProducer, tuple[int, ...]], None]] = {
    "sound": planned(""),
    "killed": planned("killed", ""),
    "away": away,
    "late": planned("late"),
    "lost": planned("lost", ""),
    "said": planned("said"),
    "after": planned(""),
}


def play(folder: Path, names: list[str]) -> dict[str, Any]:
    """Scenario -> [what came of it, how often it was asked for, seconds]."""
    import argparse

    from datasets import Dataset
    from hs_connectors import HiddenStatesBackend
    from speculators.train.data import ArrowDataset

    prompts = [tuple(tiny.sample(index)["input_ids"].tolist()) for index in range(len(SCENARIOS))]
    rows = [{"input_ids": p, "loss_mask": [1] * len(p), "seq_len": len(p)} for p in prompts]
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    answer: dict[str, Any] = {}
    with Master(folder / "master.log", say=lambda _: None) as master:
        master.wait_ready()
        server = StoringProducer(folder, master)
        backend = HiddenStatesBackend.registry["mooncake"]
        parser = argparse.ArgumentParser()
        backend.add_train_args(parser)
        args = parser.parse_args(
            ["--mooncake-master", master.address, "--mooncake-global-segment-gib", "0",
             "--mooncake-local-buffer-gib", "0.0625"]
        )  # fmt: skip
        dataset = ArrowDataset(
            tiny.TOKENS, folder / "data", backend.from_train_args(args, ""),
            vllm_endpoint=server.url, request_timeout=20, max_retries=0,
            generation_validation_retries=0,
        )  # fmt: skip
        for index, name in enumerate(SCENARIOS):
            if name in names:
                SCENARIOS[name](server, prompts[index])
                began = time.monotonic()
                found = show(dataset, index, prompts[index])
                seconds = time.monotonic() - began
                answer[name] = [found, server.asked.count(prompts[index]), seconds]
        answer["nameless"] = nameless(lambda: backend.from_train_args(args, ""))
        answer["restarts"] = len(master.restarts)
        answer["left"] = [key for key in set(master.keys()) if not key.startswith("producer-")]
    return answer


def main() -> None:
    tiny.quiet()
    os.environ["MOONCAKE_LOCAL_HOSTNAME"] = "127.0.0.1"
    folders = [Path(sys.argv[1]) / name for name in ("unpatched", "patched")]
    for folder in folders:
        folder.mkdir()
    unpatched = play(folders[0], ["sound", "killed"])
    apply(only=sys.argv[2:], workers=False)  # the master's guard needs none
    patched = play(folders[1], list(SCENARIOS))
    print(json.dumps([unpatched, patched]), flush=True)
    os._exit(0)  # threads of clients and of the server have nothing left to say


if __name__ == "__main__":
    main()
