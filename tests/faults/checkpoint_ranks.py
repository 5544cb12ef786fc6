"""Two real ranks over gloo, with DDP or FSDP2, to be killed. Not a test module.

As `checkpoint_process`, but a life is a world of two forked ranks. Each has its own data (numpy is
seeded by rank) and its own generators, so a rank that got another's state back shows.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from speculators_patches.checkpointing import failpoints
from speculators_patches.checkpointing.coordinator import Gloo
from speculators_patches.checkpointing.errors import UnfitError
from speculators_patches.checkpointing.fingerprint import Field
from speculators_patches.checkpointing.policy import When
from speculators_patches.checkpointing.run import RunCheckpoints
from speculators_patches.checkpointing.state import TrainingState
from tests.unit.checkpoint_run import at, raw
from tests.unit.checkpoint_run import build as small_run

TOTAL, WORLD = 8, 2


def build(mode: str, rank: int) -> tuple[torch.nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model: torch.nn.Module = torch.nn.Sequential(
        torch.nn.Linear(6, 10), torch.nn.Dropout(0.2), torch.nn.Linear(10, 5), torch.nn.Linear(5, 3)
    )
    model[3].requires_grad_(False)  # type: ignore[index]
    if mode == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    else:
        model = torch.nn.parallel.DistributedDataParallel(model)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon([(n, p) for n, p in trained if p.ndim == 2], lr=0.02),
        torch.optim.AdamW([(n, p) for n, p in trained if p.ndim != 2], lr=0.01),
    ]
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(100 + rank)
    return model, optimizers


def bits(model: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> str:
    """SHA-256 over this rank's (local) weights and optimizer state."""

    def local(tensor: Any) -> Any:
        return raw(tensor.to_local() if hasattr(tensor, "to_local") else tensor)

    content: list[Any] = [local(p) for p in model.parameters()]
    for optimizer in optimizers:
        for entries in optimizer.state_dict()["state"].values():
            content += [(key, local(value)) for key, value in sorted(entries.items())]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def live(root: Path, mode: str, rank: int, world: int, unfit: int | None) -> None:
    """One rank's life; saves at every second step, and waits for each save.

    Args:
        unfit: the rank whose part of the second save must not be written.
    """
    looked_at = 0

    def check(_: object) -> None:
        nonlocal looked_at
        looked_at += 1
        if rank == unfit and looked_at == 2:
            raise UnfitError(f"rank {rank} is spoilt")

    model, optimizers = build(mode, rank)
    schedulers = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: 1 / (1 + i)) for o in optimizers]
    state = TrainingState(model, optimizers, schedulers, rank=rank)
    with RunCheckpoints(
        root / "saves",
        state,
        [Field("data.seed", 0)],
        when=When(2, None),
        coordinator=Gloo(timeout_s=20),
        check=check,
        rank_timeout_s=5,
    ) as saves:
        step = 0
        if (found := saves.find()) is not None:
            extra = saves.restore(found)
            assert extra["rank"] == rank
            saves.restore_rng(found)
            step = found.cursor.global_step
        with (root / f"losses-{rank}").open("a") as losses:
            while step < TOTAL:
                batch = torch.from_numpy(np.random.randn(4, 6).astype(np.float32))
                loss = model(batch).square().mean() * (0.5 + random.random())
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for one in [*optimizers, *schedulers]:
                    one.step()
                step += 1
                losses.write(f"{step} {loss.item().hex()}\n")
                losses.flush()
                saves.step(at(step), extra=lambda: {"rank": rank})
                saves.flush(30)
        (root / f"unfit-{rank}").write_text(saves.unfit())
    (root / f"result-{rank}.json").write_text(json.dumps(bits(model, optimizers)))


def rank_process(request: Mapping[str, Any], rank: int, number: int) -> None:
    failpoints.configure(request["failpoints"].get(str(rank)))
    root, world = Path(request["root"]), request["world"]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{root}/rendezvous-{number}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=20),
    )
    live(root, request["mode"], rank, world, request["unfit"])
    dist.destroy_process_group()


def serve() -> None:
    run = small_run("muon+adamw")  # torch imports half of itself at the first optimizer step
    run.train(1)
    for number, line in enumerate(sys.stdin):
        request = json.loads(line)
        pids = []
        for rank in range(request["world"]):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    rank_process(request, rank, number)
                    code = 0
                except Exception as error:  # noqa: BLE001 - a rank whose peer died
                    print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
                finally:
                    os._exit(code)
            pids.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


class Worlds:
    """The forking process, seen from a test."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def run(
        self,
        root: Path,
        mode: str,
        world: int = WORLD,
        *,
        unfit: int | None = None,
        **failpoints_: str,
    ) -> list[int]:
        """Exit codes of the ranks; `rank0=`, `rank1=` arm failpoints."""
        root.mkdir(parents=True, exist_ok=True)
        armed = {name.removeprefix("rank"): points for name, points in failpoints_.items()}
        request = {
            "root": str(root), "mode": mode, "world": world, "unfit": unfit, "failpoints": armed
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes


if __name__ == "__main__":
    serve()
