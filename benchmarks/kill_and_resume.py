"""The real drafter trained by upstream's own trainer, killed with SIGKILL and resumed: same bits?

    python -m benchmarks.kill_and_resume                                  # a GPU, real size
    python -m benchmarks.kill_and_resume --divide 16 --tokens 256 --samples 24 --epochs 2 --kills 2

Makes a verifier folder (config, embedding, head, norm) and prepared data with cached hidden states
from which the next token can be learnt, at Gemma 4 26B-A4B's dimensions. Then two runs of the same
command, `python -m speculators_patches run --module speculators.train`, side by side: one is left
alone, the other is sent SIGKILL (all its processes) `--kills` times, each time at a random moment
while a checkpoint is being written, and started again. Compared: every file of the last exact
checkpoint (weights, moments, schedules, generators) by SHA-256. `--trainers 2` trains with two
ranks under torchrun (DDP; NCCL on GPUs), as the recipe does. `--fresh-compiler-cache` starts every
process with an empty compiler cache, as after a reboot; `--no-deterministic` leaves out
`--deterministic-cuda`, without which a GPU rounds differently from run to run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.real_size import Size
from recipes.config import resolve
from recipes.spread import torchrun
from recipes.vllm import processes

RESULTS = Path(__file__).parent / "results"
LAYERS, DOCUMENT = 30, 1024


def verifier(folder: Path, size: Size) -> Path:
    """A folder that upstream reads as a verifier: Llama's config, random embedding, head, norm.

    bfloat16, as a body's are. Only what the trainer reads of a verifier is there.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=2112 // size.divide,
        num_hidden_layers=LAYERS,
        num_attention_heads=size.heads,
        num_key_value_heads=max(1, size.heads // 2),
        head_dim=256,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(size.vocabulary, size.hidden, generator=generator)
        .mul_(size.hidden**-0.5)
        .to(torch.bfloat16)
        for name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    weights["model.norm.weight"] = torch.full((size.hidden,), 8.0, dtype=torch.bfloat16)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def data(folder: Path, body: Path, size: Size, samples: int, times: int = 1) -> Path:
    """Prepared rows with cached hidden states, as `real_size.batch` makes them, and frequencies.

    Args:
        times: how often each sample is there; the others are further names of the first's file.
    """
    import torch
    from datasets import Dataset
    from safetensors import safe_open
    from safetensors.torch import save_file

    length = min(DOCUMENT, size.tokens)
    states = folder / "hidden_states"
    states.mkdir(parents=True)
    with safe_open(body / "model.safetensors", "pt") as file:
        head = file.get_slice("lm_head.weight")[: size.draft_vocabulary]
    rows = []
    generator = torch.Generator().manual_seed(1)
    for index in range(samples):
        start = torch.randint(size.draft_vocabulary, (1,), generator=generator)
        ids = (start + 7 * torch.arange(length + 2)) % size.draft_vocabulary
        # Upstream pairs the states of token i with token i + 1; they name token i + 2.
        last = head[ids[1 : length + 1]].float() * size.hidden**0.5
        noise = torch.randn(last.shape, generator=generator)
        layers = [(last + scale * noise).to(torch.bfloat16) for scale in (1.0, 0.5, 0.1, 0.0)]
        save_file(
            {"hidden_states": torch.stack(layers, dim=1), "token_ids": ids[:length]},
            states / f"hs_{index}.safetensors",
        )
        rows.append({
            "input_ids": ids[:length].tolist(), "loss_mask": [0] * 8 + [1] * (length - 8),
            "seq_len": length,
        })  # fmt: skip
    for index in range(samples, samples * times):
        first, other = (states / f"hs_{n}.safetensors" for n in (index % samples, index))
        try:
            other.hardlink_to(first)
        except OSError:  # a file system without them
            shutil.copyfile(first, other)
    Dataset.from_list(rows * times).with_format("torch").save_to_disk(str(folder))
    torch.save(dict.fromkeys(range(size.draft_vocabulary), 1), folder / "token_freq.pt")
    return folder


def training_flags(size: Size, device: str, ttt_steps: int, loss: str) -> list[str]:
    """Upstream's flags for the real drafter on what `data` made, but for length and optimizer."""
    on_cpu = ["--draft-attn-impl", "sdpa", "--hidden-states-dtype", "float32"]
    return [
        "--speculator-type", "eagle3", "--target-layer-ids", "2", "15", "27",
        "--draft-vocab-size", str(size.draft_vocabulary), "--mask-token-id", "0",
        "--total-seq-len", str(size.tokens), "--on-missing", "raise",
        "--ttt-steps", str(ttt_steps), "--lr", "1e-4", "--scheduler-type", "cosine",
        "--seed", "42", "--loss-implementation", loss, *(on_cpu if device == "cpu" else []),
    ]  # fmt: skip


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for it and all below it at once: torchrun gives each of its ranks another group."""
    if process.poll() is None:
        for pid in processes.tree(process.pid):  # parents first: none starts another
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait(60)


def logged_losses(text: str) -> list[tuple[int, float]]:
    """(step, training loss) of each whole line of metrics in a trainer's log.

    One that was cut off by a kill is left out: what follows it is another step's.
    """
    pairs = re.findall(
        r"train/loss=([^\s,]+)((?:(?!train/loss=|Fast-skipping).)*?)\bglobal_step=(\d+)",
        text, re.DOTALL,
    )  # fmt: skip
    return [(int(step), float(loss)) for loss, _, step in pairs]


class Run:
    """One training command and its save path.

    Args:
        flags: upstream's and ours, after the usual ones.
        fresh_cache: an empty compiler cache for every process.
        trainers: ranks; more than one under torchrun.
    """

    def __init__(
        self, work: Path, name: str, flags: list[str], fresh_cache: bool, trainers: int
    ) -> None:
        self.folder, self.out, self.fresh_cache = work / name, work / name / "out", fresh_cache
        self.folder.mkdir()
        self.log = self.folder / "log"
        self.kills: list[dict[str, Any]] = []
        recipe, _ = resolve("h100", assignments=[f"trainers={trainers}", "max_restarts=0"])
        self.variables = torchrun.environment(recipe)
        self.command = torchrun.wrapped(recipe, [
            sys.executable, "-m", "speculators_patches", "run", "--module", "speculators.train",
            "--", "--verifier-name-or-path", str(work / "verifier"), "--data-path",
            str(work / "data"), "--save-path", str(self.out),
            "--log-dir", str(self.folder / "logs"),
            *flags,
        ])  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        env = os.environ | self.variables | {"PYTHONUNBUFFERED": "1"}
        if self.fresh_cache:
            env["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=self.folder)
            env["TRITON_CACHE_DIR"] = tempfile.mkdtemp(dir=self.folder)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def records(self) -> list[Any]:
        from speculators_patches.checkpointing import names, reading

        store = self.out / names.STORE
        return reading.records(store) if store.is_dir() else []

    def step(self) -> int:
        """Of the newest committed checkpoint; 0 without one."""
        found = self.records()
        return int(found[0].step) if found else 0

    def is_writing(self) -> bool:
        """Whether a checkpoint is being written: its staging folder is there."""
        from speculators_patches.checkpointing import names

        store = self.out / names.STORE
        return any(
            (name := names.parse(path.name)) is not None and name.hidden
            for path in (store.iterdir() if store.is_dir() else ())
        )

    def finish(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        if process.wait(timeout_s):
            raise SystemExit(f"{self.folder.name} ended with {process.returncode}: {self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-1500:]

    def kill_while_writing(self, chance: random.Random, timeout_s: float) -> None:
        """Starts it, lets it commit something new, and kills it while it writes."""
        before, began = self.step(), time.monotonic()
        process = self.start()
        try:
            steps = before
            while steps <= before or not self.is_writing():
                if process.poll() is not None:
                    raise SystemExit(f"it ended before it could be killed: {self.tail()}")
                if time.monotonic() - began > timeout_s:
                    raise SystemExit(f"no new checkpoint within {timeout_s} s: {self.tail()}")
                time.sleep(0.01)
                steps = self.step()
            time.sleep(chance.random() * 0.5)
            writing = self.is_writing()
        finally:
            kill_all(process)
        self.kills.append(
            {
                "committed_step": self.step(),
                "was_writing": writing,
                "seconds_of_the_process": round(time.monotonic() - began, 1),
            }
        )

    def state(self) -> dict[str, str]:
        """File of the newest checkpoint, verified -> SHA-256."""
        from speculators_patches.checkpointing import reading

        record = self.records()[0]
        reading.verify(record)
        return {
            name: entry.sha256
            for name, entry in record.manifest.files.items()
            if name.startswith("rank-")
        }

    def losses(self) -> list[tuple[int, float]]:
        """(step, training loss), three decimals as logged; a repeated step is there again."""
        return logged_losses(self.log.read_text(errors="replace"))


def main(
    divide: Annotated[int, typer.Option(help="Divide all widths by this (1: real size).")] = 1,
    tokens: Annotated[int, typer.Option(help="Packed tokens a step.")] = 4096,
    samples: Annotated[int, typer.Option(help="Conversations of 1024 tokens.")] = 120,
    epochs: Annotated[int, typer.Option(help="Passes over them.")] = 30,
    ttt: Annotated[int, typer.Option(help="Positions trained.")] = 3,
    kills: Annotated[int, typer.Option(min=1, help="SIGKILLs of the second run.")] = 3,
    every: Annotated[int, typer.Option(min=1, help="Steps between exact checkpoints.")] = 20,
    loss: Annotated[str, typer.Option(help="--loss-implementation.")] = "eager",
    optimizer: Annotated[str, typer.Option(help="adamw or muon.")] = "adamw",
    trainers: Annotated[int, typer.Option(min=1, help="Ranks, with a GPU each.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the moments of the kills.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for each process.")] = 900,
    deterministic: Annotated[bool, typer.Option(help="--deterministic-cuda.")] = True,
    fresh_compiler_cache: Annotated[bool, typer.Option(help="As after a reboot.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where to work (7 GB at real size) [a temporary folder].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The result file.")] = None,
) -> None:
    """Two runs of one command, one of them killed and resumed; compares their last checkpoints."""
    import torch

    from recipes.environment import command_line, describe

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = Size(divide, tokens)
    flags = [
        *training_flags(size, device, ttt, loss), "--optimizer", optimizer,
        "--epochs", str(epochs), "--checkpoint-freq", str(epochs), "--num-workers", "2",
        "--checkpoint-every-steps", str(every), "--checkpoint-every-minutes", "0",
        *(["--deterministic-cuda"] if deterministic else []),
    ]  # fmt: skip
    work = Path(tempfile.mkdtemp(dir=folder))
    began = time.monotonic()
    try:
        data(work / "data", verifier(work / "verifier", size), size, samples)
        made_s = time.monotonic() - began
        alone = Run(work, "alone", flags, fresh_compiler_cache, trainers)
        killed = Run(work, "killed", flags, fresh_compiler_cache, trainers)
        alone_s: list[float] = []

        def leave_alone(process: subprocess.Popen[bytes]) -> None:
            process.wait(timeout)
            alone_s.append(time.monotonic() - began - made_s)

        first = alone.start()
        watching = threading.Thread(target=leave_alone, args=(first,))
        watching.start()
        chance = random.Random(seed)
        try:
            for number in range(kills):
                killed.kill_while_writing(chance, timeout)
                print(json.dumps({"kill": number + 1, **killed.kills[-1]}), flush=True)
            killed.finish(killed.start(), timeout)
            killed_s = time.monotonic() - began - made_s
            watching.join(timeout)
            alone.finish(first, 1)
        finally:
            kill_all(first)
        one, other = alone.state(), killed.state()
        record = {
            "command": command_line("benchmarks.kill_and_resume"),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "environment": describe(),
            "flags": [flag for flag in flags if not flag.startswith("/")],
            "size": {"divide": divide, "tokens": tokens, "samples": samples},
            "trainers": trainers,
            "steps": alone.step(),
            "kills": killed.kills,
            "seconds": {
                "making_data": round(made_s, 1),
                "left_alone": round(alone_s[0], 1),
                "killed_and_resumed": round(killed_s, 1),
            },
            "losses_left_alone": [loss for _, loss in (*alone.losses()[:1], *alone.losses()[-1:])],
            "files_compared": len(one),
            "bitwise_equal": one == other and alone.step() == killed.step(),
            "unequal": sorted(name for name in one if one[name] != other.get(name)),
        }
        if not record["bitwise_equal"]:  # where did they part?
            record["losses_logged"] = {"left_alone": alone.losses(), "killed": killed.losses()}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    path = out or RESULTS / f"kill_and_resume_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"bitwise equal: {record['bitwise_equal']} after {record['steps']} steps: {path}")
    if not record["bitwise_equal"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
