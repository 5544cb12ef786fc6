"""Changes to one source file, each placed by the name of what it changes.

An `Edit` takes a file's text and gives the new one. It finds its place through the syntax tree (a
qualified name, then a statement described by `Match`), so formatting and comments of the tree
survive and no text of upstream is needed here. New code comes from real source files (`code`).
"""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from speculators_patches.export.problems import DoesNotFit
from speculators_patches.export.source import Match, Source

LINE_LENGTH = 88


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        target: qualified name of the definition that is changed, whose source has to be known; ""
            where another only shows the place.
        change: the file's text and name -> its new text; raises `DoesNotFit`.
    """

    target: str
    change: Callable[[Source], str]


def _indented(code: str, by: int) -> str:
    if not code:
        return ""
    text = textwrap.dedent(code).strip("\n")
    return textwrap.indent(text, " " * by) + "\n"


def insert(code: str, *, after: str = "", before: str = "") -> Edit:
    """A function, class or method beside the definition `after` or `before`, with blank lines."""
    beside = after or before

    def change(source: Source) -> str:
        node = source.definition(beside)
        first, last = source.rows(node)
        gap = "\n" if node.col_offset else "\n\n"
        block = _indented(code, node.col_offset)
        if after:
            return source.replace_rows(last + 1, last, gap + block)
        first = _above_comments(source, first)
        return source.replace_rows(first, first - 1, block + gap)

    return Edit("", change)


def body(target: str, code: str) -> Edit:
    """A new body for a function; its signature and docstring stay."""

    def change(source: Source) -> str:
        node = source.function(target)
        start = _first_after_docstring(node)
        first = _above_comments(source, source.rows(start)[0], node.lineno)
        _, last = source.rows(node)
        return source.replace_rows(first, last, _indented(code, start.col_offset))

    return Edit(target, change)


def statement(target: str, match: Match, code: str, *, where: str) -> Edit:
    """Statements put "before", "after" or "instead" of the one that `match` describes.

    Before means above its comments; "under" puts them between its comments and itself. No code
    "instead" takes the statement out.
    """

    def change(source: Source) -> str:
        node = source.statement(target, match)
        first, last = source.rows(node)
        block = _indented(code, node.col_offset)
        if where == "after":
            return source.replace_rows(last + 1, last, block)
        if where == "instead":
            return source.replace_rows(first, last, block)
        if where == "before":
            first = _above_comments(source, first)
        return source.replace_rows(first, first - 1, block)

    return Edit(target, change)


def field(owner: str, after: str, code: str) -> Edit:
    """A field of a class, behind the one named `after`."""
    return Edit("", statement(owner, Match("assign", after), code, where="after").change)


def wrap(
    target: str, first: Match, last: Match, header: str, tail: str = "", footer: str = ""
) -> Edit:
    """The statements from `first` to `last`, siblings, indented under `header` (`with x:`).

    Args:
        tail: statements added at the end of the block.
        footer: what follows the block, at the header's margin (`except E: ...`).
    """

    def change(source: Source) -> str:
        begin, end = source.statement(target, first), source.statement(target, last)
        if begin.col_offset != end.col_offset:
            raise DoesNotFit(f"{target} in {source.name}: what is to go under `{header}` was moved")
        top = _above_comments(source, source.rows(begin)[0])
        bottom = source.rows(end)[1]
        inner = "".join(
            "    " + source.line(row) if source.line(row).strip() else source.line(row)
            for row in range(top, bottom + 1)
        )
        margin = begin.col_offset
        block = _indented(header, margin) + inner
        block += _indented(tail, margin + 4) + _indented(footer, margin)
        return source.replace_rows(top, bottom, block)

    return Edit(target, change)


def merge_ifs(target: str, match: Match) -> Edit:
    """`if a:` around nothing but `if b:` becomes `if a and (b):`, comments kept."""

    def change(source: Source) -> str:
        outer = source.statement(target, match)
        inner = outer.body[0] if isinstance(outer, ast.If) else None
        if not isinstance(outer, ast.If) or not isinstance(inner, ast.If) or len(outer.body) > 1:
            raise DoesNotFit(f"{target} in {source.name}: `{match.text}` holds more than one `if`")
        first, last = source.rows(outer)
        tests = [source.text[slice(*source.span(node.test))] for node in (outer, inner)]
        header = _indented(f"if {tests[0]} and ({tests[1]}):", outer.col_offset)
        comments = [source.line(row) for row in range(first + 1, inner.lineno)]
        body = [source.line(row)[4:] or "\n" for row in range(inner.body[0].lineno, last + 1)]
        return source.replace_rows(first, last, header + "".join(comments + body))

    return Edit(target, change)


def condition(target: str, match: Match, new: str) -> Edit:
    """`new` in front of an `if a and (b over several lines):`, one operand a line."""

    def change(source: Source) -> str:
        node = source.statement(target, match)
        if not isinstance(node, ast.If) or not isinstance(node.test, ast.BoolOp):
            raise DoesNotFit(f"{target} in {source.name}: `{match.text}` is no `and` (any more)")
        first, second = node.test.values[0], node.test.values[1]
        start, middle = source.span(first)[1], source.span(second)[0]
        end = source.text.index(":\n", source.span(node.test)[1])
        between = source.text[start:middle]
        rest = between[between.index("and") :] + source.text[middle:end]
        margin = " " * (node.col_offset + 4)
        rest = rest.replace("\n", "\n    ")
        head = source.text[slice(*source.span(first))]
        block = f"(\n{margin}{new}\n{margin}and {head}\n{margin}{rest}\n{margin[4:]})"
        return source.replace(source.span(node.test)[0], end, block)

    return Edit(target, change)


def expression(target: str, pattern: str, new: str, *, count: int = 1) -> Edit:
    """An expression of `target` (as `ast.unparse` writes it) replaced wherever it stands.

    `{}` in `new` is the expression's own text. It must stand there `count` times.
    """

    def change(source: Source) -> str:
        node = source.definition(target) if target else source.tree
        spans = sorted(
            source.span(found)
            for found in ast.walk(node)
            if isinstance(found, ast.expr) and ast.unparse(found) == pattern
        )
        if len(spans) != count:
            where = f"{target} in {source.name}" if target else source.name
            raise DoesNotFit(f"{where} has `{pattern}` {len(spans)} times, expected {count}")
        text = source.text
        for start, end in reversed(spans):
            text = text[:start] + new.replace("{}", text[start:end]) + text[end:]
        return text

    return Edit(target, change)


def parameter(target: str, text: str, *, after: str, inline: bool = False) -> Edit:
    """A parameter (`name: type = default`) behind the one named `after`.

    `inline`: on the same line, where the signature is on one line.
    """

    def change(source: Source) -> str:
        arguments = source.function(target).args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults: dict[str, ast.expr | None] = dict(
            zip(
                [arg.arg for arg in reversed(positional)],
                reversed(arguments.defaults),
                strict=False,
            )
        )
        defaults |= {
            arg.arg: value
            for arg, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        }
        for arg in [*positional, *arguments.kwonlyargs]:
            if arg.arg == after:
                node = defaults.get(after) or arg
                return _fitting(_beside(source, node, text, inline), source, target)
        raise DoesNotFit(f"{target} in {source.name} has no parameter {after} (any more)")

    return Edit(target, change)


def argument(target: str, call: str, text: str, *, after: str, nth: int | None = None) -> Edit:
    """A keyword argument (`name=value`) behind the one named `after` in a call of `call`."""

    def change(source: Source) -> str:
        calls = [
            (node, keyword)
            for node in ast.walk(source.definition(target))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == call
            for keyword in node.keywords
            if keyword.arg == after
        ]
        if len(calls) <= (nth or 0) or (nth is None and len(calls) > 1):
            raise DoesNotFit(
                f"{target} in {source.name} calls {call}(..., {after}=...) {len(calls)} times"
            )
        node, keyword = calls[nth or 0]
        one_line = node.lineno == node.end_lineno
        return _beside(source, keyword, text, one_line)

    return Edit(target, change)


def bases(target: str, new: str) -> Edit:
    """Other base classes for a class that has some."""

    def change(source: Source) -> str:
        node = source.definition(target)
        if not isinstance(node, ast.ClassDef) or not node.bases:
            raise DoesNotFit(f"{target} in {source.name} is no class with a base (any more)")
        return source.replace(source.span(node.bases[0])[0], source.span(node.bases[-1])[1], new)

    return Edit(target, change)


def docstring(target: str, new: str) -> Edit:
    """Another docstring (its whole text, without quotes) for a definition that has one."""

    def change(source: Source) -> str:
        node = source.definition(target)
        first = node.body[0]
        if ast.get_docstring(node) is None or len(node.body) < 1:
            raise DoesNotFit(f"{target} in {source.name} has no docstring (any more)")
        quoted = f'"""{textwrap.dedent(new).strip()}"""'
        if "\n" in quoted:
            quoted = quoted[:-3] + '\n"""'
        return source.replace_rows(*source.rows(first), _indented(quoted, first.col_offset))

    return Edit(target, change)


def text(target: str, old: str, new: str) -> Edit:
    """A short word (an identifier, a flag) replaced inside the one string constant that has it."""

    def change(source: Source) -> str:
        first, last = source.rows(source.definition(target))
        rows = "".join(source.line(row) for row in range(first, last + 1))
        if rows.count(old) != 1:
            raise DoesNotFit(f"{target} in {source.name} has {old!r} {rows.count(old)} times")
        return source.replace_rows(first, last, rows.replace(old, new))

    return Edit(target, change)


def decorate(target: str, *lines: str) -> Edit:
    """Decorators (`@...`) above those that a definition has."""

    def change(source: Source) -> str:
        node = source.definition(target)
        first = source.rows(node)[0]
        block = _indented("\n".join(lines), node.col_offset)
        return source.replace_rows(first, first - 1, block)

    return Edit(target, change)


def noqa(target: str, rule: str) -> Edit:
    """`# noqa: RULE` behind a function's `def`, where it is not there yet."""

    def change(source: Source) -> str:
        node = source.function(target)
        line = source.line(node.lineno)
        if "noqa" in line:
            return source.text
        return source.replace_rows(node.lineno, node.lineno, f"{line.rstrip()}  # noqa: {rule}\n")

    return Edit(target, change)


def flag(name: str, words: str = "", *, then: str = "") -> Edit:
    """In a Markdown list of flags: `words` at the end of `name`'s entry, `then` as the next entry.

    An entry begins with "- **`--name`" and goes to the next entry or heading.
    """

    def change(source: Source) -> str:
        lines = source.text.splitlines(keepends=True)
        begins = [n for n, line in enumerate(lines) if line.startswith(f"- **`{name}`")]
        if len(begins) != 1:
            raise DoesNotFit(f"{source.name} has {len(begins)} entries for {name}, expected one")
        first = begins[0]
        after = first + 1
        while after < len(lines) and not lines[after].startswith(("- **", "#")):
            after += 1
        if words:
            lines[first] = f"{lines[first].rstrip()} {words}\n"
        if then:
            lines.insert(after, f"- {then}\n\n")
        return "".join(lines)

    return Edit("", change)


def imports(*lines: str) -> Edit:
    """Import statements (`import x` or `from m import a`), sorted in where isort would put them."""

    def change(source: Source) -> str:
        text = source.text
        for line in lines:
            text = _with_import(Source(text, source.name), line)
        return text

    return Edit("", change)


def _with_import(source: Source, line: str) -> str:
    wanted = ast.parse(line).body[0]
    present = [n for n in source.tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    if not present:
        raise DoesNotFit(f"{source.name} has no imports at its top (any more)")
    if isinstance(wanted, ast.ImportFrom):
        for node in present:
            if isinstance(node, ast.ImportFrom) and node.module == wanted.module:
                names = {_alias(item) for item in [*node.names, *wanted.names]}
                return source.replace_rows(*source.rows(node), _from(node.module, names))
    elif any(ast.unparse(node) == line for node in present):
        return source.text
    key = _order(wanted)
    section = [node for node in present if _order(node)[0] == key[0]]
    if not section:  # one of its own, set off by a blank line
        later = [node for node in present if _order(node)[0] > key[0]]
        if later:
            first = source.rows(later[0])[0]
            return source.replace_rows(first, first - 1, line + "\n\n")
        last = source.rows(present[-1])[1]
        return source.replace_rows(last + 1, last, "\n" + line + "\n")
    before = [node for node in section if _order(node) < key]
    if before:
        last = source.rows(before[-1])[1]
        return source.replace_rows(last + 1, last, line + "\n")
    first = source.rows(section[0])[0]
    return source.replace_rows(first, first - 1, line + "\n")


def _alias(item: ast.alias) -> str:
    return f"{item.name} as {item.asname}" if item.asname else item.name


def _from(module: str | None, names: set[str]) -> str:
    # As isort: CONSTANTS, then Classes, then functions.
    def rank(name: str) -> tuple[int, str]:
        plain = name.lstrip("_")
        if name.isupper():
            return 0, name
        return (1 if plain[:1].isupper() else 2), name

    ordered = sorted(names, key=rank)
    flat = f"from {module} import {', '.join(ordered)}"
    if len(flat) <= LINE_LENGTH:
        return flat + "\n"
    return f"from {module} import (\n" + "".join(f"    {name},\n" for name in ordered) + ")\n"


def _order(node: ast.stmt) -> tuple[int, int, str]:
    module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
    if isinstance(node, ast.Import):
        module = node.names[0].name
    top = module.partition(".")[0]
    if module == "__future__":
        section = 0
    elif top in sys.stdlib_module_names:
        section = 1
    else:
        section = 3 if top in ("speculators", "vllm", "tests", "hs_connectors") else 2
    if top == "hs_connectors":
        section = 3
    return section, int(isinstance(node, ast.ImportFrom)), module


def _beside(source: Source, node: ast.expr | ast.arg | ast.keyword, new: str, inline: bool) -> str:
    """`new` behind `node` in a list: on its line, or on a line of its own."""
    end = source.span(node)[1]
    if inline:
        return source.replace(end, end, f", {new}")
    assert node.end_lineno is not None
    line = source.line(node.lineno)
    margin = line[: len(line) - len(line.lstrip())]
    block = textwrap.indent(new, margin) + ",\n"
    text = source.replace_rows(node.end_lineno + 1, node.end_lineno, block)
    return text if text[end] == "," else text[:end] + "," + text[end:]


def _fitting(text: str, source: Source, target: str) -> str:
    """A signature on one line that became too long, as ruff would break it."""
    new = Source(text, source.name)
    node = new.function(target)
    line = new.line(node.lineno).rstrip()
    if len(line) <= LINE_LENGTH or not line.endswith(":"):
        return text
    head, _, rest = line.partition("(")
    inner, _, tail = rest.rpartition(")")
    margin = " " * node.col_offset
    broken = f"{head}(\n{margin}    {inner}\n{margin}){tail}\n"
    return new.replace_rows(node.lineno, node.lineno, broken)


def _first_after_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.stmt:
    has_docstring = ast.get_docstring(node) is not None
    if has_docstring and len(node.body) == 1:
        raise DoesNotFit(f"{node.name} has no body but its docstring")
    return node.body[1 if has_docstring else 0]


def _above_comments(source: Source, row: int, stop: int = 0) -> int:
    """The first line of the comments right above line `row`, or `row`."""
    while row - 1 > stop and source.line(row - 1).lstrip().startswith("#"):
        row -= 1
    return row
