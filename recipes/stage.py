"""What every stage shares: the run it belongs to, its folder, its manifest, its display."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipes.config import Recipe
from recipes.display import Activity, Display
from recipes.process import StageError, run_command
from recipes.run_folder import RunFolder, digest, file_digest
from recipes.servers import ServerPool
from recipes.spread.call import Call
from recipes.vllm.process import WarmPool


@dataclass
class Context:
    """What the stages of one run share."""

    recipe: Recipe
    run: RunFolder
    display: Display
    servers: ServerPool
    # Goes before stage names in the display and before server names: two runs may share a pool.
    label: str = ""
    # A process that has imported upstream, to fork its commands from; None: a new process each.
    warm: WarmPool | None = None
    # On several machines: tells the others what this one, which leads, wants of them.
    call: Call | None = None
    # Seconds a labelled stage usually takes, where known; for the display.
    expected: dict[str, float] = field(default_factory=dict)

    def wanting(self, what: str) -> AbstractContextManager[None]:
        """While the block runs the other machines, if there are any, give `what`."""
        return nullcontext() if self.call is None else self.call.wanting(what)

    def is_finished(self, stage: str) -> bool:
        return bool(self.run.manifest(stage))


@contextmanager
def stage(ctx: Context, name: str, made_from: dict[str, Any]) -> Iterator[Work | None]:
    """Yield None when the stage is done already; else its work, which must call `finish`."""
    shown = ctx.label + name
    if ctx.run.is_done(name, made_from):
        ctx.display.line(f"{shown}: already done from the same inputs, nothing to do")
        yield None
        return
    folder = ctx.run.begin(name, made_from)
    if ctx.run.is_done(name, made_from):
        ctx.display.line(f"{shown}: done earlier from the same inputs, taken back into use")
        yield None
        return
    with ctx.display.activity(shown, ctx.expected.get(shown)) as activity:
        yield Work(ctx, name, made_from, folder, activity, time.monotonic())


@dataclass
class Work:
    ctx: Context
    name: str
    made_from: dict[str, Any]
    folder: Path
    activity: Activity
    start: float

    def finish(self, **results: Any) -> None:
        self.ctx.run.finish(self.name, self.made_from, time.monotonic() - self.start, **results)

    def command(
        self,
        argv: list[str],
        watch: Callable[[], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        run_command(self.ctx.run, self.name, argv, env=env, watch=watch, warm=self.ctx.warm)


def require(run: RunFolder, stage: str) -> dict[str, Any]:
    manifest = run.manifest(stage)
    if not manifest:
        raise StageError(
            f"{run.stage_dir(stage)} holds no finished `{stage}`: run `{stage}` (or `all`) first."
        )
    return manifest


def trained_drafter(run: RunFolder) -> Path:
    """The folder of the drafter that `train` finished."""
    return run.root / str(require(run, "train")["drafter"])


def extraction_folder(run: RunFolder) -> Path:
    """Where vLLM leaves hidden states for the trainer; emptied by the trainer as it reads."""
    return run.stage_dir("hidden_states")


def body_identity(name: str) -> str:
    """A hub id stands for itself; a local folder for the bytes of its weights and configuration."""
    folder = Path(name)
    if not name or not folder.is_dir():
        return name
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    return digest([(f.name, file_digest(f)) for f in files])
