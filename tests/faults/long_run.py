"""Real training processes on a random tiny verifier with cached hidden states, to be broken off."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from speculators_patches.checkpointing import names, reading
from tests.compat import matrix

HIDDEN, LAYERS, VOCABULARY, SAMPLES = 32, 4, 64, 20
BATCHES = SAMPLES * 9 // 10  # an epoch: one sample of 48 fills a batch of 64; a tenth validates
PATCHES = (
    "cpu_training,interruptible_retries,save_best_scope,finite_guard,skip_empty_steps,"
    "step_checkpoints"
)


def prepare(folder: Path) -> Path:
    """Writes a random tiny Llama (`verifier`) and prepared data with hidden states (`data`)."""
    from datasets import Dataset
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "verifier")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w1").save_pretrained(
        folder / "verifier"
    )
    rows = []
    states = folder / "data" / "hidden_states"
    states.mkdir(parents=True)
    for index in range(SAMPLES):
        ids = torch.randint(0, VOCABULARY, (48,))
        rows.append({"input_ids": ids.tolist(), "loss_mask": [0] * 4 + [1] * 44, "seq_len": 48})
        hidden = torch.randn(48, 4, HIDDEN).to(torch.bfloat16)
        save_file({"hidden_states": hidden, "token_ids": ids}, states / f"hs_{index}.safetensors")
    Dataset.from_list(rows).with_format("torch").save_to_disk(str(folder / "data"))
    return folder


class Training:
    """One run: the same command line each time, its save path and its record.

    Args:
        work: from `prepare`.
        folder: of this run; made here.
        flags: upstream's and ours, after the usual ones.
        ranks: above 1: under torchrun.
        torchrun: more options of torchrun's.
        zygote: fork the processes from this one instead of starting Python each time.
    """

    def __init__(
        self,
        work: Path,
        folder: Path,
        *flags: str,
        version: str = "0.9.0",
        ranks: int = 1,
        torchrun: tuple[str, ...] = (),
        zygote: Zygote | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.work, self.folder, self.version, self.ranks = work, folder, version, ranks
        self.flags, self.zygote, self.torchrun = flags, zygote, torchrun
        self.out = folder / "out"
        # Of rank 0, if there are several; another rank's ends in its number.
        self.record = folder / ("record.jsonl0" if ranks > 1 else "record.jsonl")
        self.log = folder / "log"

    def arguments(self, *more: str) -> list[str]:
        return [
            "--verifier-name-or-path", str(self.work / "verifier"),
            "--data-path", str(self.work / "data"), "--save-path", str(self.out),
            "--log-dir", str(self.folder / "logs"),
            "--speculator-type", "eagle3", "--target-layer-ids", "1", "2", "3",
            "--total-seq-len", "64", "--on-missing", "raise", "--ttt-steps", "2",
            *self.flags, *more,
        ]  # fmt: skip

    def start(self, *more: str, patches: str = PATCHES, **environment: str) -> Any:
        """The process (Popen, or what looks like it), in a group of its own."""
        environment |= {"RECORD": str(self.folder / "record.jsonl"), "COLUMNS": "1000"}
        if self.zygote is not None:
            return self.zygote.fork(self.arguments(*more), environment, self.log)
        command = launcher(patches, self.ranks, self.torchrun) + self.arguments(*more)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=matrix.ROOT,
                env=matrix.environment(self.version) | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self, *more: str, patches: str = PATCHES, **environment: str) -> int:
        """Runs to the end; the exit code."""
        process = self.start(*more, patches=patches, **environment)
        try:
            return int(process.wait(300))
        finally:
            stop(process)

    def interrupt(self, after_batches: int, number: int, *more: str, **environment: str) -> int:
        """Starts it, sends a signal to its whole group after so many more batches; exit code."""
        before = self.trained()
        process = self.start(*more, **environment)
        try:
            wait_for(lambda: self.trained() >= before + after_batches, process)
            os.killpg(process.pid, number)
            return int(process.wait(120))
        finally:
            stop(process)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self) -> list[dict[str, Any]]:
        """The record so far; a torn last line is left out."""
        text = self.record.read_text() if self.record.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def trained(self) -> int:
        """Batches that training processes have begun."""
        return sum("ids" in line for line in self.lines())

    def steps(self) -> dict[int, dict[str, Any]]:
        """Step -> what was trained on and logged; where it was done twice, the last time."""
        found = {}
        ids = ""
        for line in self.lines():
            ids = line.get("ids", ids)
            if "step" in line:
                found[line["step"]] = line | {"ids": ids}
        return found

    def validations(self) -> dict[int, dict[str, Any]]:
        return {line["validated"]: line for line in self.lines() if "validated" in line}

    def checkpoints(self) -> list[reading.Record]:
        """Newest first."""
        return reading.records(self.out / names.STORE)

    def state(self) -> dict[str, str]:
        """File of the newest checkpoint -> SHA-256: weights, moments, schedules, generators."""
        record = self.checkpoints()[0]
        reading.verify(record)
        assert record.manifest is not None
        return {
            name: entry.sha256
            for name, entry in record.manifest.files.items()
            if name.startswith("rank-")
        }


def launcher(patches: str, ranks: int = 1, options: tuple[str, ...] = ()) -> list[str]:
    """The command up to the flags of the training."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    torchrun += options
    return [
        sys.executable, *(torchrun if ranks > 1 else []), "-m", "speculators_patches", "run",
        "--only", patches, "tests/faults/probes/recorded_run.py", "--",
    ]  # fmt: skip


class Zygote:
    """A process with upstream imported and patched, which forks training processes."""

    def __init__(self, folder: Path, version: str = "0.9.0", patches: str = PATCHES) -> None:
        with (folder / "zygote.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher(patches), "--zygote"],
                cwd=matrix.ROOT,
                env=matrix.environment(version),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    def fork(self, argv: list[str], environment: dict[str, str], log: Path) -> Forked:
        assert self._process.stdin is not None
        order = {"argv": argv, "env": environment, "log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Forked(self)

    def answer(self, timeout_s: float) -> dict[str, int] | None:
        assert self._process.stdout is not None
        # Unbuffered: what select does not see, readline must not have taken.
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return None
        line = b""
        while not line.endswith(b"\n"):
            piece = os.read(self._process.stdout.fileno(), 1)
            assert piece, "the zygote ended"
            line += piece
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(30)


class Forked:
    """A training process of a `Zygote`, with the methods of Popen that the tests use."""

    def __init__(self, zygote: Zygote) -> None:
        self._zygote = zygote
        answer = zygote.answer(120)
        assert answer is not None, "the zygote does not answer"
        self.pid = answer["pid"]
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and (answer := self._zygote.answer(0)) is not None:
            self.returncode = answer["code"]
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        if self.returncode is None:
            answer = self._zygote.answer(timeout_s)
            if answer is None:
                raise subprocess.TimeoutExpired("training", timeout_s)
            self.returncode = answer["code"]
        return self.returncode


def stop(process: Any) -> None:
    """Ends a process that this test started, and its group."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.wait(30)


def wait_for(what: Callable[[], bool], process: Any = None, timeout_s: float = 180) -> None:
    """Polls until `what()`; fails if the process, if one is given, ends first."""
    until = time.monotonic() + timeout_s
    while not what():
        assert process is None or process.poll() is None, (
            "the process ended before the test could act"
        )
        assert time.monotonic() < until, "the process never came to where the test acts"
        time.sleep(0.005)
