"""Runs a module, a script or code as `__main__`, with patches in force, as plain Python would.

Like `python -m M`, `python script.py` and `python -c CODE`: same `sys.argv`, `sys.path[0]`,
`__main__`, exit code and traceback. The program's module stays `sys.modules["__main__"]`, so what
it pickles and the workers it spawns find it there.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any, NoReturn

from speculators_patches import output, workers
from speculators_patches.overlay import PatchRefused, UnknownPatch, apply, defaults


class ProgramNotFound(Exception):
    """The module or script to run does not exist; the message is for the user."""


@dataclass(frozen=True)
class Program:
    """What to run: exactly one of `module`, `script`, `code`; and its arguments."""

    module: str | None = None
    script: str | None = None
    code: str | None = None
    args: tuple[str, ...] = ()


def enter(program: Program, selection: str) -> None:
    """For a rewritten subprocess: applies the parent's `selection` (JSON), then runs `program`."""
    _set_first_path(program)
    try:
        workers.rejoin(selection)
    except (PatchRefused, UnknownPatch) as error:
        fail(f"subprocess of a patched run: {error}")
    run(program)


def run_patched(
    program: Program,
    only: tuple[str, ...] | None = None,
    skip: tuple[str, ...] = (),
    allow_drift: tuple[str, ...] = (),
) -> None:
    """Applies the patches and runs `program`; a refused patch is one sentence and exit code 2."""
    _end_with_torchrun()
    _set_first_path(program)  # upstream may live beside the program
    package = (program.module or "").partition(".")[0]
    if only is None and defaults(package):
        only = defaults(package)  # the program is upstream's own, maybe vLLM's
    try:
        apply(only, skip, allow_drift=allow_drift)
    except (PatchRefused, UnknownPatch) as error:
        fail(str(error))
    run(program)


def _end_with_torchrun() -> None:
    """As a rank: SIGTERM, on which training saves and ends, when torchrun is killed (Linux).

    torchrun starts its ranks in sessions of their own. Left behind by a SIGKILL they would train on
    unseen, and the same command, given again, would find the checkpoints in use.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # killed before the call
        raise SystemExit(128 + signal.SIGTERM)


def run(program: Program) -> None:
    """Runs `program` as `__main__`; its exceptions, SystemExit included, pass through."""
    _set_first_path(program)
    output.endure_a_full_disk()
    try:
        main, code = _prepare(program)
    except ProgramNotFound as error:
        fail(str(error))
    sys.excepthook = _without_our_frames(sys.excepthook)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)


def fail(message: str) -> NoReturn:
    """One line on stderr and exit code 2."""
    print(f"speculators_patches: {message}", file=sys.stderr)
    raise SystemExit(2)


def _set_first_path(program: Program) -> None:
    """Makes `sys.path[0]` what Python would have made it, and keeps this package importable."""
    if not sys.flags.safe_path:
        if program.script is not None:
            first = str(Path(program.script).resolve().parent)
        elif program.module is not None:
            first = str(Path.cwd())
        else:
            first = ""
        if sys.path[:1] != [first]:
            if _first_is_ours():
                del sys.path[0]
            sys.path.insert(0, first)
    if workers.HOME not in sys.path:
        sys.path.append(workers.HOME)


_started_at = sys.path[0] if sys.path else None


def _first_is_ours() -> bool:
    """True while `sys.path[0]` is the entry that Python made for our own command."""
    global _started_at
    ours = not sys.flags.safe_path and bool(sys.path) and sys.path[0] == _started_at
    _started_at = None
    return ours


def _prepare(program: Program) -> tuple[ModuleType, CodeType]:
    main = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    if program.module is not None:
        spec, code = _find_module(program.module)
        main.__dict__.update(
            __spec__=spec,
            __loader__=spec.loader,
            __file__=spec.origin,
            __cached__=spec.cached,
            __package__=spec.parent,
        )
        sys.argv = [spec.origin or program.module, *program.args]
    elif program.script is not None:
        path = program.script
        if not Path(path).is_file():
            raise ProgramNotFound(f"there is no script {path} (in {Path.cwd()})")
        loader = SourceFileLoader("__main__", path)
        code = compile(loader.get_data(path), path, "exec", dont_inherit=True)
        main.__dict__.update(__file__=path, __loader__=loader, __cached__=None, __package__=None)
        sys.argv = [path, *program.args]
    else:
        code = compile(program.code or "", "<string>", "exec", dont_inherit=True)
        main.__dict__.update(__loader__=None, __package__=None)
        sys.argv = ["-c", *program.args]
    return main, code


def _find_module(name: str) -> tuple[ModuleSpec, CodeType]:
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(name + ".__main__")
    except ModuleNotFoundError as error:
        # A parent that does not exist is the user's mistake; what its import lacks is not.
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            spec = None
        else:
            raise
    loader: Any = spec.loader if spec is not None else None
    code = loader.get_code(spec.name) if spec is not None and hasattr(loader, "get_code") else None
    if spec is None or code is None:
        raise ProgramNotFound(f"{sys.executable} finds no module {name} that can be run")
    return spec, code


def _without_our_frames(hook: Any) -> Any:
    """An excepthook that starts the traceback in the program, not in this file."""
    ours = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 (as co_filename)

    def trimmed(kind: type[BaseException], value: BaseException, tb: TracebackType | None) -> None:
        rest = tb
        while rest is not None and _is_launching(rest, ours):
            rest = rest.tb_next
        hook(kind, value.with_traceback(rest or tb), rest or tb)

    return trimmed


def _is_launching(tb: TracebackType, ours: str) -> bool:
    name = tb.tb_frame.f_code.co_filename
    return name.startswith((ours, "<frozen runpy>")) or name.endswith("runpy.py")
