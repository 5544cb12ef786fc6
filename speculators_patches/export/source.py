"""One source file as text and syntax tree: where a definition or a statement begins and ends."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from speculators_patches.drift import named
from speculators_patches.export.problems import DoesNotFit

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

_SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.Raise, ast.Assert)


@dataclass(frozen=True)
class Match:
    """A statement inside a function or class, by what it does rather than by its text.

    Attributes:
        kind: "call" (a simple statement that calls it), "assign" (to it), "for" (over it),
            "if" or "while" (on it), "return" (of it, "" for any), "raise" (of it), "try", "with".
        text: the callee, target, iterable, condition or value, as `ast.unparse` writes it;
            ending in "..." it is a beginning.
        nth: which one, from 0, where there are several; None: there must be one.
    """

    kind: str
    text: str = ""
    nth: int | None = None

    def fits(self, node: ast.stmt) -> bool:
        """Whether `node` is such a statement."""
        return any(self._is(found) for found in self._texts(node))

    def _is(self, found: str) -> bool:
        if self.text.endswith("..."):
            return found.startswith(self.text[:-3])
        return not self.text or found == self.text

    def _texts(self, node: ast.stmt) -> Iterator[str]:
        match self.kind, node:
            case "call", _ if isinstance(node, _SIMPLE):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Call):
                        yield ast.unparse(inner.func)
            case "assign", ast.Assign(targets=targets):
                yield from map(ast.unparse, targets)
            case "assign", ast.AnnAssign(target=to) | ast.AugAssign(target=to):
                yield ast.unparse(to)
            case "for", ast.For(iter=over) | ast.AsyncFor(iter=over):
                yield ast.unparse(over)
            case ("if", ast.If(test=test)) | ("while", ast.While(test=test)):
                yield ast.unparse(test)
            case "return", ast.Return(value=value):
                yield "" if value is None else ast.unparse(value)
            case "raise", ast.Raise(exc=error) if error is not None:
                yield ast.unparse(error.func if isinstance(error, ast.Call) else error)
            case "try", ast.Try():
                yield ""
            case "with", ast.With(items=items) | ast.AsyncWith(items=items):
                yield ", ".join(ast.unparse(item.context_expr) for item in items)
            case _:
                return


class Source:
    """The text of one file, read only; an edit makes a new text."""

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        try:
            self.tree = ast.parse("" if name.endswith(".md") else text)
        except SyntaxError as error:
            raise DoesNotFit(f"{name} is not readable as Python: {error}") from None
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def index(self, line: int, column: int) -> int:
        """Position in the text of a 1-based line and of a column in UTF-8 bytes."""
        before = self._lines[line - 1].encode()[:column].decode()
        return self._starts[line - 1] + len(before)

    def span(self, node: ast.expr | ast.arg | ast.stmt | ast.keyword) -> tuple[int, int]:
        """Where the node's own text is."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self.index(node.lineno, node.col_offset),
            self.index(node.end_lineno, node.end_col_offset),
        )

    def line(self, number: int) -> str:
        """The text of one line, 1-based."""
        return self._lines[number - 1]

    def rows(self, node: ast.stmt) -> tuple[int, int]:
        """First and last line of a statement, decorators included, 1-based."""
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(item.lineno for item in decorators)])
        assert node.end_lineno is not None
        return first, node.end_lineno

    def replace_rows(self, first: int, last: int, new: str) -> str:
        """The text with lines first..last (none if last < first) replaced by whole lines."""
        return self.text[: self._starts[first - 1]] + new + self.text[self._starts[last] :]

    def replace(self, start: int, end: int, new: str) -> str:
        """The text with start..end replaced."""
        return self.text[:start] + new + self.text[end:]

    def definition(self, qualname: str) -> Definition:
        """The one definition of `qualname`; the last one where it is conditional.

        Raises:
            DoesNotFit: there is none.
        """
        nodes: list[ast.AST] = [self.tree]
        for part in qualname.split("."):
            nodes = [found for node in nodes for found in named(node, part)]
        found = [
            n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        ]
        if not found:
            raise DoesNotFit(f"{self.name} has no {qualname} (any more)")
        return found[-1]

    def function(self, qualname: str) -> Function:
        """As `definition`, of a function."""
        node = self.definition(qualname)
        if isinstance(node, ast.ClassDef):
            raise DoesNotFit(f"{qualname} in {self.name} is a class, not a function (any more)")
        return node

    def statement(self, qualname: str, match: Match) -> ast.stmt:
        """The statement of `qualname` (the module, if "") that `match` describes.

        Raises:
            DoesNotFit: none, or several where one is expected.
        """
        body = self.definition(qualname).body if qualname else self.tree.body
        found = [node for node in _statements(body) if match.fits(node)]
        place = f"{qualname or 'the module'} in {self.name}"
        what = f"{match.kind} {match.text}".strip()
        if match.nth is None and len(found) > 1:
            raise DoesNotFit(f"{place} has {len(found)} statements `{what}` where one was expected")
        if len(found) <= (match.nth or 0):
            raise DoesNotFit(f"{place} has no statement `{what}` (any more)")
        return found[match.nth or 0]


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Every statement in the order of the text, inner ones after the one that holds them."""
    for node in body:
        yield node
        for block in ("body", "orelse", "finalbody"):
            inner = getattr(node, block, None)
            if isinstance(inner, list):
                yield from _statements(inner)
        for handler in getattr(node, "handlers", ()):
            yield from _statements(handler.body)
