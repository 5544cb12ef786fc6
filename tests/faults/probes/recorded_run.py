"""Upstream's training command that also writes down what it trains on and what it logs.

    python -m speculators_patches run --only ... tests/faults/probes/recorded_run.py -- FLAGS

Appends one JSON line a training batch and a logged step to $RECORD (and the rank). $SLOW_S is slept
before every training step, so that a test can hit it; $FAIL_AT raises before that batch's step.
$POISON_AT puts a NaN into a weight before it. $NO_FOLDER_FOR is an epoch whose folder meets a
full disk; $VALIDATION_LOSSES are those of the epochs in turn, whatever was computed.
$GROUP_TIMEOUT_S is what a process group waits that is not told otherwise; with $IMPATIENT none is.

With `--zygote` in place of FLAGS it imports everything once, then forks a training process for
each line {"argv", "env", "log"} on stdin, prints its pid, and when it has ended its exit code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from speculators.models.eagle3.core import Eagle3DraftModel
from speculators.train import trainer as upstream
from speculators.train.checkpointer import SingleGPUCheckpointer
from speculators.train.config import TrainConfig

from speculators_patches import patience
from speculators_patches.checkpointing import failpoints

try:
    from speculators.train.cli import main
except ImportError:  # 0.7
    from tests.faults.probes.script_070 import main

_forward = Eagle3DraftModel.forward
_info = upstream.metric_logger.info
_save = SingleGPUCheckpointer.save_checkpoint
_validate = upstream.Trainer.val_epoch
_batches = 0


def write(**content: Any) -> None:
    path = Path(os.environ["RECORD"] + os.environ.get("RANK", ""))
    with path.open("a") as out:
        out.write(json.dumps(content) + "\n")


def forward(self: Any, **batch: Any) -> Any:
    global _batches
    digest = hashlib.sha256(batch["input_ids"].numpy().tobytes())
    digest.update(batch["hidden_states"].float().numpy().tobytes())
    if self.training:
        write(ids=digest.hexdigest()[:16])
        if _batches == int(os.environ.get("FAIL_AT", "-1")):
            raise RuntimeError("the driver gave up")
        if _batches == int(os.environ.get("POISON_AT", "-1")):
            self.fc.weight.data[0, 0] = torch.nan
        _batches += 1
    else:
        write(validating=digest.hexdigest()[:16])
    time.sleep(float(os.environ.get("SLOW_S", "0")))
    return _forward(self, **batch)


def info(message: Any, *args: Any, **options: Any) -> None:
    if "train" in message:
        write(step=message["global_step"], lr=message["lr"], train=message["train"])
    elif "val" in message:
        write(validated=message["epoch"], val=message["val"])
    _info(message, *args, **options)


def save(self: Any, model: Any, optimizers: Any, epoch: Any) -> None:
    # The name of a folder that is being made: `.step-checkpoints-new-<epoch>-...`
    if str(epoch).split("-")[3:4] == [os.environ.get("NO_FOLDER_FOR")]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _save(self, model, optimizers, epoch)


def validate(self: Any, epoch: int) -> Any:
    found = _validate(self, epoch)
    losses = os.environ.get("VALIDATION_LOSSES")
    return found if losses is None else {**found, "loss_epoch": float(losses.split(",")[epoch])}


def train(argv: list[str]) -> None:
    torch.use_deterministic_algorithms(True)
    Eagle3DraftModel.forward = forward  # type: ignore[method-assign]
    upstream.metric_logger.info = info  # type: ignore[method-assign, assignment]
    SingleGPUCheckpointer.save_checkpoint = save  # type: ignore[method-assign]
    upstream.Trainer.val_epoch = validate  # type: ignore[method-assign]
    write(pid=os.getpid())
    if "GROUP_TIMEOUT_S" in os.environ:
        from torch.distributed import distributed_c10d

        short = timedelta(seconds=float(os.environ["GROUP_TIMEOUT_S"]))
        distributed_c10d.default_pg_timeout = short
    if "IMPATIENT" in os.environ:
        patience.groups = contextlib.nullcontext  # type: ignore[assignment]
    main(TrainConfig.resolve(argv))


def zygote() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(order)
        print(json.dumps({"pid": pid}), flush=True)
        print(json.dumps({"code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}), flush=True)


def _become(order: dict[str, Any]) -> None:
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order["env"])
    failpoints.configure(os.environ.get(failpoints.VARIABLE))
    code: Any = 0
    try:
        train(order["argv"])
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # noqa: BLE001 - what the interpreter would do
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    zygote() if sys.argv[1:] == ["--zygote"] else train(sys.argv[1:])
