"""New code, taken from real source files: a spec's own, or the overlay's own functions.

A spec's source files are Python that linters read; whole definitions are taken by `definition`, and
statements for the middle of an upstream function are the body of a function made for that
(`inside`), whose parameters are the names it finds there.
"""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from functools import lru_cache
from pathlib import Path

from speculators_patches.export.problems import ExportError
from speculators_patches.export.source import Source

SPECS = Path(__file__).parent / "specs"

_INCLUDE = "# include: "
_CUT = "# ---- shared ----\n"  # above it: imports, for this repository's linters


def definition(file: str | Path, name: str, *, rename: str = "") -> str:
    """The source of a function or class, dedented, its comments above included.

    Args:
        file: below `specs/`, or a path.
        rename: its name upstream, where it has another one here.
    """
    source = _source(_path(file))
    first, last = source.rows(source.definition(name))
    while first > 1 and source.line(first - 1).startswith("#"):
        first -= 1
    text = textwrap.dedent("".join(source.line(row) for row in range(first, last + 1)))
    if rename:
        short = name.rpartition(".")[2]
        text = text.replace(f"def {short}(", f"def {rename}(", 1)
        text = text.replace(f"class {short}", f"class {rename}", 1)
    return text


def inside(file: str | Path, name: str) -> str:
    """The statements of a function's body without its docstring, comments included."""
    source = _source(_path(file))
    node = source.function(name)
    has_docstring = ast.get_docstring(node) is not None
    head = node.body[0].end_lineno if has_docstring else node.body[0].lineno - 1
    assert head is not None
    if not has_docstring:  # comments between the signature and the first statement belong to it
        while source.line(head).lstrip().startswith("#"):
            head -= 1
    _, last = source.rows(node)
    return textwrap.dedent("".join(source.line(row) for row in range(head + 1, last + 1))).strip(
        "\n"
    )


def after_try(file: str | Path, name: str) -> str:
    """The clauses of the `try` that a function's body is (`except`, `else`), comments included."""
    source = _source(_path(file))
    node = source.function(name)
    block = node.body[-1]
    if not isinstance(block, ast.Try):
        raise ExportError(f"{name} in {source.name} does not end in a try")
    _, last = source.rows(block.body[-1])
    _, end = source.rows(block)
    return textwrap.dedent("".join(source.line(row) for row in range(last + 1, end + 1)))


def whole(path: Path) -> str:
    """A file that goes upstream as it is, with `# include: NAME` lines replaced by shared code.

    Each pull request has to stand alone, so what several test files share is in each of them.
    """
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(_INCLUDE):
            shared = (SPECS / line.removeprefix(_INCLUDE)).read_text(encoding="utf-8")
            lines.append(shared.partition(_CUT)[2].strip("\n"))
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def ours(module: str, name: str) -> str:
    """A function of the overlay as upstream would have it: without imports inside it.

    The overlay imports torch inside functions, so that reading a record costs nothing; upstream's
    modules import it at their top.
    """
    spec = importlib.util.find_spec(f"speculators_patches.{module}")
    if spec is None or spec.origin is None:
        raise ExportError(f"the overlay has no module {module}")
    text = definition(Path(spec.origin), name)
    source = Source(text, module)
    node = source.function(name.rpartition(".")[2])
    for inner in reversed(node.body):
        if isinstance(inner, ast.Import | ast.ImportFrom):
            first, last = source.rows(inner)
            if last < len(text.splitlines()) and not source.line(last + 1).strip():
                last += 1
            text = source.replace_rows(first, last, "")
            source = Source(text, module)
    return text


def body_of(text: str) -> str:
    """The body of the one function in `text`, without its docstring."""
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    lines = text.splitlines(keepends=True)
    start = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno - 1
    return textwrap.dedent("".join(lines[start:])).strip("\n")


def _path(file: str | Path) -> Path:
    return file if isinstance(file, Path) else SPECS / file


@lru_cache(maxsize=128)
def _source(path: Path) -> Source:
    return Source(path.read_text(encoding="utf-8"), path.name)
