"""One rank of `benchmarks.transfer`: reads samples as upstream's trainer does, and trains on them.

Rank 0 prints a line of JSON for the samples that every arm got, and then each arm's samples/s in
every round. The other rank waits at a barrier in arms that it has no part in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler

from benchmarks.quota import Quotas
from benchmarks.real_size import Size, Training
from benchmarks.transfer_arms import ARMS, COUNTS, READ, TRANSFERS, Arm
from recipes.vllm import processes
from recipes.vllm.mooncake import Store
from speculators_patches import apply

PATCHES = ("cpu_training", "mooncake_waits", "several_producers", "wait_for_producer")
_SERVER_IMPORTS = ["benchmarks.transfer_rank", "speculators.train.data", "hs_connectors", "openai"]


class Rows(Sampler[int]):
    """What the next pass reads, in this order."""

    def __init__(self) -> None:
        self.now: range = range(0)

    def __iter__(self) -> Iterator[int]:
        return iter(self.now)

    def __len__(self) -> int:
        return len(self.now)


class Feed:
    """Upstream's data set and collation over some producers, with workers that stay."""

    def __init__(
        self, data: Path, store: Store | None, urls: list[str], size: Size, workers: int
    ) -> None:
        from hs_connectors import HiddenStatesBackend
        from speculators.models.eagle3.data import shift_batch
        from speculators.train.data import ArrowDataset, CollateFn

        transfer = None
        if store is not None:
            backend = HiddenStatesBackend.registry["mooncake"]
            parser = argparse.ArgumentParser()
            backend.add_train_args(parser)
            flags = store.trainer_flags()[2:]  # without the choice of the backend
            transfer = backend.from_train_args(parser.parse_args(flags), str(data))
        self.rows = Rows()
        self.loader = DataLoader(
            ArrowDataset(
                size.tokens, data, transfer, ",".join(f"{url}/v1" for url in urls),
                hidden_states_dtype=torch.float32,
            ),
            batch_size=1, sampler=self.rows, num_workers=workers, prefetch_factor=2,
            collate_fn=CollateFn(
                size.tokens, size.hidden, dtype=torch.float32, preprocess=shift_batch
            ),
            multiprocessing_context="forkserver", persistent_workers=True,
        )  # fmt: skip

    def read(self, rows: range) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of one row, in order."""
        self.rows.now = rows
        for found in self.loader:
            if found.pop("error_records"):
                raise SystemExit("error: a sample is missing; the workers said why")
            yield found


def digest(batch: dict[str, torch.Tensor]) -> str:
    states = (batch["hidden_states"], batch["verifier_last_hidden_states"])
    return hashlib.sha256(b"".join(one.numpy().tobytes() for one in states)).hexdigest()


class Rank:
    """Everything that stays from arm to arm."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given
        self.number = dist.get_rank()
        size = Size(divide=given["divide"], tokens=given["tokens"])
        self.feeds = {
            (producers, transfer): Feed(
                Path(given["data"]),
                Store(given["master"]) if transfer == "mooncake" else None,
                given["urls"][transfer][:producers], size, given["workers"],
            )
            for transfer in TRANSFERS
            for producers in COUNTS
        }  # fmt: skip
        self.kept: list[dict[str, torch.Tensor]] = []
        alone, both = (Training(size, "cpu", ttt_steps=3) for _ in COUNTS)
        self.gradient_bytes = sum(
            one.numel() * 4 for one in alone.model.parameters() if one.requires_grad
        )
        both.model = DistributedDataParallel(both.model)
        self.training = {1: alone, 2: both}

    def same_bits(self) -> bool:
        """Reads all rows through every feed once; whether each gave the same."""
        every = []
        for feed in self.feeds.values():
            batches = list(feed.read(range(self.given["rows"])))
            every.append([digest(batch) for batch in batches])
            self.kept = batches[:2]
        return all(found == every[0] for found in every)

    def measure(self, arm: Arm) -> float | None:
        """Samples/s of all that take part, after the first `unmeasured` of each; None: no part."""
        takes_part = self.number < max(1, arm.trainers)
        dist.barrier()
        if not takes_part:
            dist.barrier()
            return None
        ranks = max(1, arm.trainers)
        rows = range(self.number, self.given["rows"], ranks)
        if arm.producers:
            batches = self.feeds[arm.producers, arm.transfer].read(rows)
        else:
            batches = (self.kept[number % 2] for number in range(len(rows)))
        began = 0.0
        for number, batch in enumerate(batches):
            if arm.trainers:
                self.training[arm.trainers].step(batch)
            if number + 1 == self.given["unmeasured"]:
                began = time.perf_counter()
        seconds = time.perf_counter() - began
        dist.barrier()
        return ranks * (len(rows) - self.given["unmeasured"]) / seconds


def main() -> None:
    given = json.loads(os.environ["TRANSFER_BENCHMARK"])
    torch.set_num_threads(1)
    multiprocessing.get_context("forkserver").set_forkserver_preload(_SERVER_IMPORTS)
    apply(only=PATCHES)
    dist.init_process_group("gloo")
    rank = Rank(given)
    same = rank.same_bits()
    for arm in ARMS:  # warms up what only training touches
        if arm not in READ and arm.transfer != "mooncake":
            rank.measure(arm)
    if rank.number == 0:
        print(json.dumps({"same_bits": same, "gradient_bytes": rank.gradient_bytes}), flush=True)
        while not Path(given["go"]).exists():  # the owner puts its servers under their shares
            time.sleep(0.1)
    dist.barrier()
    quotas = Quotas(given["cores"]) if given["cores"] else None
    if quotas is not None:
        me, *workers = processes.tree(os.getpid())
        quotas.give("workers", workers, unlimited=True)
        quotas.give("trainer", [me])
    try:
        for number in range(given["rounds"]):
            turn = number * len(ARMS) // given["rounds"]
            for arm in ARMS[turn:] + ARMS[:turn]:
                rate = rank.measure(arm)
                if rank.number == 0:
                    print(json.dumps({"arm": ARMS.index(arm), "samples_s": rate}), flush=True)
    finally:
        if quotas is not None:
            quotas.__exit__()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
