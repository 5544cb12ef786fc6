"""Keeps patches in force in the processes that a patched process starts.

Two ways in, both undone by `withdraw`:

1. `multiprocessing` children started by spawn or forkserver (DataLoader workers, vLLM's engine
   core). The parent sends such a child two pickles: preparation data, then the process object with
   its dataset and collate function. We add an entry to the first one whose unpickling applies the
   same patches, so they are in force before the second is read. Forked children inherit them.
2. `subprocess.Popen` of this same Python interpreter: `python [flags] (-m M | script.py | -c CODE)`
   becomes `python [flags] .../rejoin.py SELECTION ...`, which applies the patches and then runs
   the same program. Command lines that are not understood pass untouched.

Not covered: `os.exec*`, `os.spawn*`, `shell=True`, other interpreters, entry-point scripts such as
`vllm` or `torchrun` (use `python -m`), Ray actors, and `multiprocess` (dill's copy of
`multiprocessing`) with spawn. Start those through `python -m speculators_patches run`.
"""

from __future__ import annotations

import json
import multiprocessing.spawn
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speculators_patches import command_line

# The folder that holds this package, so that a child finds it however it was started.
HOME = str(Path(__file__).resolve().parent.parent)


@dataclass(frozen=True)
class Selection:
    """What a child process has to apply: names of patches, and whose drift was accepted."""

    names: tuple[str, ...]
    allow_drift: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Selection:
        content = json.loads(text)
        return cls(tuple(content["names"]), tuple(content["allow_drift"]))


class _Rejoin:
    """Pickles as a call that applies the selection; `exec` because the child may not find us yet.

    The child reads it before multiprocessing gives it the parent's `sys.path`.
    """

    def __init__(self, selection: Selection, path: list[str]) -> None:
        self.code = (
            f"import sys; sys.path[:] = {path!r}; "
            f"sys.path += [] if {HOME!r} in sys.path else [{HOME!r}]; "
            f"from speculators_patches.workers import rejoin; rejoin({selection.to_json()!r})"
        )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, (self.code,)


_selection: Selection | None = None
_get_preparation_data = multiprocessing.spawn.get_preparation_data
_popen_init = subprocess.Popen.__init__


def spread(selection: Selection) -> None:
    """From now on, processes started from this one apply `selection`."""
    global _selection
    _selection = selection
    multiprocessing.spawn.get_preparation_data = _preparation_data
    subprocess.Popen.__init__ = _init_popen  # type: ignore[method-assign]


def withdraw() -> None:
    """Undoes `spread`; safe when nothing was spread."""
    global _selection
    _selection = None
    if multiprocessing.spawn.get_preparation_data is _preparation_data:
        multiprocessing.spawn.get_preparation_data = _get_preparation_data
    if subprocess.Popen.__init__ is _init_popen:
        subprocess.Popen.__init__ = _popen_init  # type: ignore[method-assign]


def rejoin(selection: str) -> None:
    """In a child: applies what its parent had applied; raises if that is not possible here."""
    from speculators_patches.overlay import apply  # here: overlay imports this module

    wanted = Selection.from_json(selection)
    apply(only=wanted.names, allow_drift=wanted.allow_drift)


def _preparation_data(name: str) -> dict[str, Any]:
    data: dict[str, Any] = _get_preparation_data(name)
    if _selection is not None:
        data["speculators_patches"] = _Rejoin(_selection, data.get("sys_path", sys.path))
    return data


def _init_popen(self: subprocess.Popen[Any], args: Any, *rest: Any, **options: Any) -> None:
    rewritten = args
    if _selection is not None and not _has_program_of_its_own(rest, options):
        rewritten = command_line.rewrite(args, _selection.to_json(), options.get("env"))
    _popen_init(self, rewritten, *rest, **options)
    self.args = args  # what the program asked for, as errors and logs should show it


def _has_program_of_its_own(rest: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """True if Popen takes the program from `executable` or a shell instead of from `args`."""
    return bool(len(rest) > 1 or options.get("executable") or options.get("shell"))
