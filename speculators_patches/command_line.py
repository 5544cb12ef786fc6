"""Reads a Python command line and rewrites it so that the program runs with the patches.

`python [flags] -m M ARGS`, `python [flags] script.py ARGS` and `python [flags] -c CODE ARGS` become
`python [flags] rejoin.py SELECTION (-m M | script.py | -c CODE) ARGS`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REJOIN = str(Path(__file__).resolve().with_name("rejoin.py"))

# Interpreter flags whose value is the next argument when it is not glued to the flag.
_WITH_VALUE = ("-X", "-W", "--check-hash-based-pycs")
_ALONE = set("bBdEiIOPqRsSuvx")

# Programs that never use upstream, where applying patches would only cost the import of torch.
_LEFT_ALONE_MODULES = ("pip", "venv", "ensurepip", "torch._inductor", "speculators_patches")
_LEFT_ALONE_CODE = ("from multiprocessing.", "speculators_patches")
_LEFT_ALONE_SCRIPTS = ("torch/_inductor/", "speculators_patches/rejoin.py", "/pip/")


def rewrite(args: Any, selection: str, env: Mapping[str, str] | None = None) -> Any:
    """The rewritten arguments, or `args` itself where nothing is to be rewritten.

    Args:
        args: what `subprocess.Popen` was given.
        selection: JSON for `rejoin.py`.
        env: the child's environment if it was given one; its PATH finds a bare `python`.
    """
    if isinstance(args, str | bytes | os.PathLike) or not isinstance(args, Sequence):
        return args
    if not args or not all(isinstance(item, str | os.PathLike) for item in args):
        return args
    words = [os.fspath(item) for item in args]
    if not all(isinstance(word, str) for word in words) or not is_this_python(words[0], env):
        return args
    at = program_at(words)
    if at is None or _left_alone(words, at):
        return args
    return [*words[:at], REJOIN, selection, *words[at:]]


def is_this_python(program: str, env: Mapping[str, str] | None = None) -> bool:
    """True if `program` is the interpreter that runs us, in the same environment.

    A virtual environment's python is a link to a shared binary, so the folder counts, not the file
    that the link ends at.
    """
    found = program if os.sep in program else shutil.which(program, path=(env or {}).get("PATH"))
    if not found:
        return False
    ours, theirs = Path(sys.executable), Path(found)
    return (
        theirs.name.startswith("python")
        and theirs.absolute().parent == ours.absolute().parent
        and theirs.resolve() == ours.resolve()
    )


def program_at(words: Sequence[str]) -> int | None:
    """Index of `-m`, `-c` or the script; None if the command line is not understood or has none."""
    at = 1
    while at < len(words):
        word = words[at]
        if word in ("-m", "-c"):
            return at if at + 1 < len(words) else None
        if word in _WITH_VALUE:
            at += 2
        elif word.startswith(("-X", "-W", "--check-hash-based-pycs=")):
            at += 1
        elif word.startswith("-"):
            if len(word) < 2 or not set(word[1:]) <= _ALONE:
                return None  # stdin, --help, -V, glued -mM or -cCODE, or a flag of a later Python
            at += 1
        else:
            return at
    return None


def _left_alone(words: Sequence[str], at: int) -> bool:
    if words[at] == "-m":
        module = words[at + 1]
        return any(module == name or module.startswith(name + ".") for name in _LEFT_ALONE_MODULES)
    if words[at] == "-c":
        return any(text in words[at + 1] for text in _LEFT_ALONE_CODE)
    path = Path(words[at]).absolute().as_posix()
    return any(part in path for part in _LEFT_ALONE_SCRIPTS)
