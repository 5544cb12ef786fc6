"""The recipe's regenerate and prepare, killed at any file operation or request, and started again.

The stages are the real ones, upstream's commands are real, in forks of this process, which has
imported upstream; the endpoint is the chat server, as one that the user runs. A kill takes the
stage and its command together, as a power cut or an OOM killer does.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from recipes.servers import ServerPool
from recipes.vllm_server import Endpoint, ServerSpec
from tests.faults.regenerating import KILLED, ChatServer, conversations, expected, rows_in, write

_CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
PROMPTS = 6


class Forks:
    """What `Context.warm` is to a stage: runs upstream's module in a fork."""

    def start(self, args: Any, env: Any, log: Path, threads: int, module: str) -> Forked:
        pid = os.fork()
        if pid:
            return Forked(pid)
        from speculators_patches.launcher import Program, run_patched

        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(env)
        code = 0
        try:
            run_patched(Program(module=module, args=tuple(args)))
        except SystemExit as stop:
            if isinstance(stop.code, str):
                os.write(2, stop.code.encode() + b"\n")
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:  # noqa: BLE001 - the fork must not return into the test
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            code = 70
        os._exit(code)


class Forked:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def poll(self) -> int | None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def stop(self, grace_s: float) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Endpoints(ServerPool):
    """`Context.servers` for a server that the user runs, without the probes of a real vLLM."""

    def __init__(self, url: str, model: str, logs: Path) -> None:
        super().__init__(logs, print)
        self._url, self._model = url, model

    @contextmanager
    def lease(self, spec: ServerSpec, endpoint: str = "", **_: Any) -> Iterator[Endpoint]:
        yield Endpoint(self._url, self._model)


class Runs:
    """One run folder after the other, each attacked by `attempt`."""

    def __init__(self, folder: Path, server: ChatServer) -> None:
        self.folder, self.server = folder, server
        self.model = str(folder / "model")
        prompts = conversations(PROMPTS)
        self.prompts = write(folder / "stage_prompts.jsonl", prompts)
        self.want = expected(prompts)
        self._count = mmap.mmap(-1, 8)

    @property
    def operations(self) -> int:
        """File operations of the last attempt."""
        return int(struct.unpack("q", self._count[:8])[0])

    def attempt(
        self, root: Path, *, kill_at: int | None = None, request: int | None = None, **changed: str
    ) -> tuple[int, str]:
        """(exit code, what was said) of regenerate and prepare in a fork.

        Args:
            kill_at: number of the file operation before which everything is killed.
            request: number of the request after which everything is killed.
        """
        self._count[:8] = struct.pack("q", 0)
        gate, opener = os.pipe()
        log = root.with_suffix(".said")
        pid = os.fork()
        if pid == 0:
            os.close(opener)
            os.setsid()
            os.read(gate, 1)
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 2)
            code = 70
            try:
                sys.addaudithook(self._hook(root, kill_at))
                code = self._stages(root, changed)
            except BaseException as error:  # noqa: BLE001 - as above
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(code)
        os.close(gate)
        self.server.plan(pid=-pid, kill_at=request)
        os.write(opener, b"x")
        os.close(opener)
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")

    def _stages(self, root: Path, changed: dict[str, str]) -> int:
        from recipes.config import resolve
        from recipes.display import Display
        from recipes.prepare_stage import prepare
        from recipes.process import StageError
        from recipes.regenerate_stage import regenerate
        from recipes.run_folder import RunFolder
        from recipes.stage import Context

        asked = {
            "body": self.model, "prompts": str(self.prompts), "samples": str(PROMPTS),
            "regenerate_endpoint": self.server.url, "regenerate_concurrency": "2",
            "seq_len": "4096", "train_max_model_len": "none", "regenerate_server_wait": "0.2",
            "train_share": "0.8", "regenerate_max_tokens": "4096", "bench_max_model_len": "8192",
        }  # fmt: skip
        recipe, _ = resolve("miniature", None, [f"{k}={v}" for k, v in (asked | changed).items()])
        servers = Endpoints(self.server.url, self.model, root / "logs")
        warm: Any = Forks()
        ctx = Context(recipe, RunFolder(root), Display(), servers, warm=warm)
        try:
            regenerate(ctx)
            prepare(ctx)
        except StageError as error:
            os.write(2, f"error: {error}\n".encode())
            return 1
        return 0

    def _hook(self, root: Path, kill_at: int | None) -> Any:
        inside = str(root)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event == "open":
                writes = isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
                if not writes or not str(args[0]).startswith(inside):
                    return
                if str(args[0]).startswith(f"{inside}/logs"):
                    return
            elif event not in _CHANGES or not str(args[0]).startswith(inside):
                return
            number = self.operations + 1
            self._count[:8] = struct.pack("q", number)
            if number == kill_at:
                os.killpg(0, signal.SIGKILL)

        return hook

    def state(self, root: Path) -> str:
        """What is wrong with a finished run; "" if nothing is."""
        from datasets import load_from_disk

        if rows_in(root / "regenerate" / "responses.jsonl") != self.want:
            return "the answers are not each there once"
        data = load_from_disk(str(root / "prepare" / "dataset")).with_format(None)
        found: dict[str, list[Any]] = {}
        for name, ids, mask in zip(
            data["conversation"], data["input_ids"], data["loss_mask"], strict=True
        ):
            found.setdefault(name, []).append((ids, mask))
        if {name: sorted(rows) for name, rows in found.items()} != {
            name: sorted(rows) for name, rows in self.want.items()
        }:
            return "the data set is not the answers"
        if not (root / "prepare" / "dataset" / "token_freq.pt").is_file():
            return "no token frequencies"
        for stage in ("regenerate", "prepare"):
            if not json.loads((root / stage / "manifest.json").read_text())["output"]:
                return f"{stage} does not say what it made"
        left = sorted(p.name for p in (root / "prepare").iterdir())
        if left != ["dataset", "made_from.json", "manifest.json"]:
            return f"left behind: {left}"
        return ""


ATTACK = st.fixed_dictionaries(
    {
        "kill_at": st.none() | st.integers(1, 45),
        "request": st.none() | st.integers(1, 9),
        "cut": st.sampled_from([0, 0, 30, 700]),
    }
)


def attack(folder: Path, server: ChatServer, examples: int) -> dict[str, Any]:
    """Sequences of kills, and the plain cases, as the test reads them."""
    runs = Runs(folder, server)
    found: dict[str, Any] = {}
    root = folder / "undisturbed"
    code, said = runs.attempt(root)
    found["undisturbed"] = [code, runs.state(root) if code == 0 else said]
    found["operations"] = runs.operations
    found["said"] = said
    before = (root / "commands.jsonl").read_text()
    code, said = runs.attempt(root)
    found["again"] = {
        "code": code,
        "operations": runs.operations,
        "said": said.count("nothing to do"),
        "same_commands": (root / "commands.jsonl").read_text() == before,
        "requests": len(server.asked()),
    }
    commands = [json.loads(line) for line in before.splitlines()]
    found["commands"] = [row["argv"][:2] for row in commands]

    # Killed when only prepare's manifest was missing: it takes the data set that is there.
    root = folder / "late"
    code, _ = runs.attempt(root, kill_at=found["operations"] - 1)
    late = [code, (root / "prepare" / "manifest.json").exists()]
    made = (root / "prepare" / "dataset").stat().st_mtime_ns
    code, said = runs.attempt(root)
    kept = (root / "prepare" / "dataset").stat().st_mtime_ns == made
    found["late"] = [*late, code, runs.state(root) if code == 0 else said, kept]
    root = folder / "undisturbed"

    # Too much is dropped: the prompts alone fill seq_len.
    code, said = runs.attempt(root, seq_len="100")
    found["dropped"] = [code, said]
    # What the drop is about is still there: with the old setting it is done without any work.
    code, _ = runs.attempt(root)
    found["restored"] = [code, runs.state(root), len(server.asked())]
    # An answer file that somebody changed is not prepared.
    spoilt = folder / "spoilt"
    shutil.copytree(root, spoilt)
    shutil.rmtree(spoilt / "prepare")
    with (spoilt / "regenerate" / "responses.jsonl").open("ab") as file:
        file.write(b"{}\n")
    found["spoilt"] = list(runs.attempt(spoilt))

    broken: list[str] = []
    numbers = iter(range(10**6))

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True,
              phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.lists(ATTACK, min_size=1, max_size=3))
    def restart(attacks: list[dict[str, Any]]) -> None:
        root = folder / f"killed{next(numbers)}"
        for one in attacks:
            code, said = runs.attempt(root, kill_at=one["kill_at"], request=one["request"])
            assert code in (0, KILLED), said
            answers = root / "regenerate" / "responses.jsonl"
            done = (root / "regenerate" / "manifest.json").exists()
            if one["cut"] and answers.exists() and not done:
                os.truncate(answers, max(0, answers.stat().st_size - one["cut"]))
        code, said = runs.attempt(root)
        assert code == 0, said
        wrong = runs.state(root)
        assert not wrong, wrong

    try:
        restart()
    except AssertionError as error:
        broken.append(str(error)[:2000])
    found["broken"] = broken
    return found
