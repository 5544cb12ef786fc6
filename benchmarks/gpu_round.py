"""The measurements of a GPU in this folder, in one go: one queue for all GPUs of the machine.

    python -m benchmarks.gpu_round --out DIR --dry-run      # what would run
    python -m benchmarks.gpu_round --out DIR
    python -m benchmarks.gpu_round --out DIR "kill_and_resume --kills 1" "train_step --ttt 3"

A command is a module of this folder with its options. Each has a GPU and an equal part of the cores
for itself; its result is DIR/NAME.json, what it says DIR/NAME.log, where NAME is of the module and
of its options, and how each ended DIR/round.json. One that fails stops no other. Run again with the
same DIR, only what has not ended well is run, and `serving_steps` keeps the engines that it has.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from recipes.run_folder import write_atomically
from recipes.vllm import processes

FOLDER = Path(__file__).parent
# The longest first: beside it the others fit on a second GPU.
COMMANDS = (
    "serving_steps --at-once 2",
    "kill_and_resume --kills 1 --samples 60 --epochs 8 --every 10",
    "online_pipeline --attention TRITON_ATTN",
    "trainer_rate",
    "train_step --softcap 30",
    "train_step --ttt 3 --tokens 4096 --loss eager --deterministic "
    "--patch quick_draft_masks+accuracy_without_waiting "
    "--patch quick_draft_masks+accuracy_without_waiting+accumulators_on_device",
    "abandoned_requests",
    "checkpoint_stall --before 10",
    "resume_drift",
    "resume_drift --optimizer muon",
    "ttt_cost --ttt 3 4 5",
)
STOP_S = 30.0  # for a command to end after an interrupt


@dataclass(frozen=True)
class Job:
    """One command; `name` is of its files, and of no other command's."""

    name: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def jobs(commands: tuple[str, ...]) -> list[Job]:
    """The commands with a name each.

    Raises:
        typer.BadParameter: one names no module of this folder, cannot be split into words, or says
            where its result goes.
    """
    found: list[Job] = []
    for text in commands:
        try:
            words = tuple(shlex.split(text))
        except ValueError as error:  # a quote without its other
            raise typer.BadParameter(f"{text!r}: {error}") from None
        if not words or not (FOLDER / f"{words[0]}.py").is_file():
            known = ", ".join(dict.fromkeys(command.split()[0] for command in COMMANDS))
            raise typer.BadParameter(f"{text!r} names no benchmark; these measure a GPU: {known}")
        if any(word.partition("=")[0] == "--out" for word in words):
            raise typer.BadParameter(f"{text!r}: results go into the round's own --out")
        options = hashlib.sha256(shlex.join(words[1:]).encode()).hexdigest()[:6]
        found.append(Job(f"{words[0]}-{options}" if words[1:] else words[0], words))
    return list(dict.fromkeys(found))


class Round:
    """Runs jobs, one at a time on each device.

    Args:
        out: the folder of results.
        gpus: as CUDA_VISIBLE_DEVICES names them; empty: one queue, and no GPU.

    Raises:
        typer.BadParameter: what earlier rounds left in `out` cannot be read.
    """

    def __init__(self, out: Path, gpus: list[str]) -> None:
        self.out, self._record = out, out / "round.json"
        self._devices: list[str | None] = [*gpus] or [None]
        self._stop, self._hurry, self._lock = threading.Event(), threading.Event(), threading.Lock()
        self._running: list[subprocess.Popen[bytes]] = []
        self.ended: dict[str, dict[str, Any]] = {}
        if self._record.is_file():
            try:
                self.ended = json.loads(self._record.read_text())
            except ValueError:
                raise typer.BadParameter(
                    f"{self._record} is no JSON; move it away, or give another --out"
                ) from None

    def left(self, wanted: list[Job]) -> list[Job]:
        """What has not ended well yet, or whose result is not there any more."""
        return [
            job for job in wanted
            if self.ended.get(job.name, {}).get("exit_code") != 0
            or not (self.out / f"{job.name}.json").is_file()
        ]  # fmt: skip

    def stop(self) -> None:
        """Ends what runs; asked again, at once. May be called from a signal handler."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    def run(self, wanted: list[Job]) -> bool:
        """Runs what is left; True if all has ended well.

        Raises:
            OSError: another round works in this folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OSError(f"another round works in {self.out}; give another --out") from None
            waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
            for job in self.left(wanted):
                waiting.put(job)
            parts = shares(os.sched_getaffinity(0), len(self._devices))
            threads = [
                threading.Thread(target=self._serve, args=(device, cores, waiting), daemon=True)
                for device, cores in zip(self._devices, parts, strict=True)
            ]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not self._stop.wait(0.2):
                pass
            if self._stop.is_set():
                self._end_all()
        return not self.left(wanted)

    def _serve(self, device: str | None, cores: list[int], waiting: queue.SimpleQueue[Job]) -> None:
        os.sched_setaffinity(0, cores)  # of this thread, and of what it starts
        while not self._stop.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self._one(job, device, len(cores))
            except OSError as error:  # one that cannot be started stops no other
                print(f"{job.text}: {error}", file=sys.stderr, flush=True)

    def _one(self, job: Job, device: str | None, cores: int) -> None:
        where = "the CPU" if device is None else f"GPU {device}"
        print(f"{job.text}: started on {where}, {cores} cores", flush=True)
        began = time.monotonic()
        place = (device or "cpu").replace("/", "_")  # as in MIG-GPU-.../1/0
        env = {"BENCH_TURN": str(self.out / f"turn.{place}")}
        if device is not None:
            env["CUDA_VISIBLE_DEVICES"] = device
        paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
        env["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        result = self.out / f"{job.name}.json"
        with (self.out / f"{job.name}.log").open("ab") as log:
            with self._lock:
                if self._stop.is_set():
                    return
                process = subprocess.Popen(
                    [sys.executable, "-m", f"benchmarks.{job.words[0]}", *job.words[1:],
                     "--out", str(result)],
                    env=os.environ | env, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                self._running.append(process)
            code = process.wait()
        if self._stop.is_set():
            return  # neither well nor badly: it is run again
        seconds = round(time.monotonic() - began, 1)
        with self._lock:
            self._running.remove(process)
            self.ended[job.name] = {
                "command": job.text, "device": where, "seconds": seconds, "exit_code": code,
            }  # fmt: skip
            write_atomically(self._record, json.dumps(self.ended, indent=1) + "\n")
        said = "done" if code == 0 else f"failed (exit code {code}; see {job.name}.log)"
        print(f"{job.text}: {said} after {seconds:.0f} s", flush=True)

    def _end_all(self) -> None:
        """An interrupt, then, after a while or when asked again, SIGKILL for all of each."""
        with self._lock:
            running = list(self._running)
        trees = {process.pid: processes.tree(process.pid) for process in running}
        for process in running:
            processes.send(signal.SIGINT, [process.pid])
        until = time.monotonic() + STOP_S
        while any(process.poll() is None for process in running) and time.monotonic() < until:
            if self._hurry.wait(0.1):
                break
        for process in running:
            left = [pid for pid in trees[process.pid] if processes.tree(pid)]
            processes.send(signal.SIGKILL, [*processes.tree(process.pid), *left])


def shares(cores: set[int], among: int) -> list[list[int]]:
    """The cores divided evenly, both threads of a core in one part; all for each if too few."""
    together: dict[str, list[int]] = {}
    for core in sorted(cores):
        topology = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        try:
            together.setdefault(topology.read_text(), []).append(core)
        except OSError:
            together[str(core)] = [core]
    whole = list(together.values())
    each = len(whole) // among
    if not each:
        return [sorted(cores)] * among
    return [
        [core for threads in whole[part * each : (part + 1) * each] for core in threads]
        for part in range(among)
    ]


def visible() -> list[str]:
    """The GPUs that this process may use, by the names that it was given for them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given is not None else None
    return [names[n] if names else str(n) for n in range(torch.cuda.device_count())]


def main(
    commands: Annotated[
        list[str] | None, typer.Argument(help="Benchmarks with their options [all].")
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of results.")] = Path("gpu_round"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run.")] = False,
) -> None:
    """Measures the GPUs of this machine."""
    wanted = jobs(tuple(commands) if commands else COMMANDS)
    gpus = visible()
    turns = Round(out.resolve(), gpus)
    if dry_run:
        left = turns.left(wanted)
        for job in wanted:
            print(f"{'to run' if job in left else 'done'}: python -m benchmarks.{job.text}")
        print(f"on: {', '.join(f'GPU {gpu}' for gpu in gpus) or 'the CPU'}")
        return
    if not gpus and not commands:
        raise SystemExit(
            "no GPU here (torch sees none), and these are measurements of real sizes; in small, "
            'on a CPU, one by one: python -m benchmarks.gpu_round "COMMAND --divide 16 ..."'
        )
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        asked.append(number)
        turns.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What is ignored here (nohup, a script's &) stays so, but not for what is started: a
        # benchmark tidies up when it is interrupted.
        ignored = signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, (lambda *_: None) if ignored else stop)
    try:
        well = turns.run(wanted)
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    if asked:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        raise SystemExit(128 + asked[0])
    if not well:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
