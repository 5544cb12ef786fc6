"""Finds a target in the installed upstream and says whether its source is the one we know.

Everything here reads source files; nothing is imported. So `status` works on an upstream that does
not import, takes milliseconds, and sees upstream's own text even while patches are applied.

A fingerprint is the first 16 hex digits of the SHA-256 of the definition's source (decorators
included) without comments, blank lines and trailing blanks, dedented. It does not depend on the
Python version that computes it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from speculators_patches.registry import Target


@dataclass(frozen=True)
class Definition:
    """One definition of a target: its fingerprint and, for a function, its signature as text."""

    fingerprint: str
    signature: str


@dataclass(frozen=True)
class Finding:
    """What was found at one target.

    Attributes:
        target: the target looked for.
        problem: a clause that says what is wrong, or None when the source is known.
        note: a clause worth telling although nothing is wrong, or None.
        fingerprints: those of the definitions found (several under `if`/`else`).
    """

    target: Target
    problem: str | None
    note: str | None
    fingerprints: tuple[str, ...]


def fingerprint(source: str) -> str:
    """16 hex digits that stay the same when only comments, blank lines or margins change."""
    text = textwrap.dedent(source)
    lines = text.splitlines()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start
                lines[row - 1] = lines[row - 1][:column]
    except (tokenize.TokenError, IndentationError):
        pass  # not whole Python; its raw text is still a fingerprint, only a stricter one
    kept = [line.rstrip() for line in lines if line.strip()]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()[:16]


def fingerprint_of(obj: object) -> str | None:
    """The fingerprint of a live object's source, None where Python cannot tell its source."""
    try:
        return fingerprint(inspect.getsource(obj))  # type: ignore[arg-type]
    except (TypeError, OSError):
        return None


def module_file(module: str) -> Path | None:
    """The source file of a dotted module, found without importing it or its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder).joinpath(*rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def definitions(file: Path, qualname: str) -> list[Definition]:
    """Every definition of `qualname` in a source file (one, unless it is conditional)."""
    stamp = file.stat()
    return list(_definitions(file, stamp.st_mtime_ns, stamp.st_size, qualname))


@lru_cache(maxsize=256)
def _definitions(file: Path, _mtime_ns: int, _size: int, qualname: str) -> tuple[Definition, ...]:
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    nodes: list[ast.AST] = [ast.parse(text)]
    for part in qualname.split("."):
        nodes = [found for node in nodes for found in named(node, part)]
    return tuple(_definition(node, lines) for node in nodes)


def examine(target: Target, version: Version) -> Finding:
    """Compares a target's source with the fingerprints on record.

    `version` is that of the installed distribution. Source equal to any known fingerprint is
    accepted, with a note where the version is not the one it is known from.
    """
    file = module_file(target.module)
    if file is None:
        return Finding(target, f"module {target.module} does not exist (any more)", None, ())
    try:
        found = definitions(file, target.qualname)
    except SyntaxError as error:
        return Finding(target, f"{file} is not readable as Python: {error}", None, ())
    if not found:
        return Finding(
            target, f"{target.qualname} is not defined in {target.module} (any more)", None, ()
        )
    prints = tuple(item.fingerprint for item in found)
    for spec, known in target.fingerprints.items():
        if known in prints:
            within = SpecifierSet(spec).contains(version, prereleases=True)
            note = None if within else f"{target.path} is the same as in {spec}"
            return Finding(target, None, note, prints)
    known_text = ", ".join(f"{known} ({spec})" for spec, known in target.fingerprints.items())
    shown = "; ".join(f"{item.fingerprint} {item.signature}".strip() for item in found)
    return Finding(
        target, f"{target.path} has changed: found {shown}; known {known_text}", None, prints
    )


def named(node: ast.AST, name: str) -> Iterator[ast.AST]:
    """Definitions called `name` directly in a module's or class's body, `if` and `try` included."""
    for child in getattr(node, "body", ()):
        yield from _named_here(child, name)


def _named_here(child: ast.AST, name: str) -> Iterator[ast.AST]:
    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        if child.name == name and not _is_overload(child):
            yield child
    elif isinstance(child, ast.Assign):
        if any(isinstance(to, ast.Name) and to.id == name for to in child.targets):
            yield child
    elif isinstance(child, ast.AnnAssign):
        if isinstance(child.target, ast.Name) and child.target.id == name:
            yield child
    elif isinstance(child, ast.If | ast.Try | ast.With):
        for block in ("body", "orelse", "finalbody"):
            for inner in getattr(child, block, ()):
                yield from _named_here(inner, name)
        for handler in getattr(child, "handlers", ()):
            for inner in handler.body:
                yield from _named_here(inner, name)


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    return any(ast.unparse(item).endswith("overload") for item in node.decorator_list)


def _definition(node: ast.AST, lines: list[str]) -> Definition:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(item.lineno for item in decorators)])  # type: ignore[attr-defined]
    source = "".join(lines[first - 1 : node.end_lineno])  # type: ignore[attr-defined]
    signature = ""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        signature = f"{node.name}({ast.unparse(node.args)})"
    return Definition(fingerprint(source), signature)
