"""Edits find their place by name, change nothing else, and refuse what they do not know."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches.export import code, edits
from speculators_patches.export.edits import Edit
from speculators_patches.export.problems import DoesNotFit, ExportError
from speculators_patches.export.source import Match, Source

SOURCE = textwrap.dedent('''\
    """A module — with a dash, two bytes more than characters."""

    import json
    from pathlib import Path

    import torch

    from speculators.train.data import alpha, omega


    # About the function.
    def function(one: int, two: str = "a") -> int:
        """Its docstring."""
        # About the loop.
        for item in range(one):
            call(item, key=two)
        if one and (
            two
            or three
        ):
            return 1
        return 0


    class Thing(Exception):
        """One line."""

        first: int = 1
        second: int = 2

        def method(
            self,
            long: int,
            other: float = 0.5,
        ):
            if long:
                # Why.
                if other:
                    call(long)
            return other
    ''')


def changed(*made: Edit, text: str = SOURCE) -> str:
    for edit in made:
        text = edit.change(Source(text, "module.py"))
    ast.parse(text)
    return text


def added(*made: Edit) -> list[str]:
    """The lines that are new, in their order; nothing else may have changed."""
    before, after = SOURCE.splitlines(), changed(*made).splitlines()
    new, rest = [], list(before)
    for line in after:
        if rest and line == rest[0]:
            rest.pop(0)
        else:
            new.append(line)
    assert not rest, f"lost: {rest}"
    return new


def test_a_definition_goes_beside_another_with_its_margin() -> None:
    edit = edits.insert("def new():\n    pass", after="function")
    assert "    return 0\n\n\ndef new():\n    pass\n\n\nclass Thing" in changed(edit)
    assert [line for line in added(edit) if line] == ["def new():", "    pass"]
    edit = edits.insert("def new(self):\n    pass", before="Thing.method")
    assert "int = 2\n\n    def new(self):\n        pass\n\n    def method(" in changed(edit)


def test_a_definition_before_another_goes_above_its_comments() -> None:
    text = changed(edits.insert("def new():\n    pass", before="function"))
    assert text.index("def new") < text.index("# About the function") < text.index("def function")


def test_statements_go_before_after_and_instead() -> None:
    loop = Match("for", "range(one)")
    before = changed(edits.statement("function", loop, "x = 1", where="before"))
    assert before.index("x = 1") < before.index("# About the loop")
    under = changed(edits.statement("function", loop, "x = 1", where="under"))
    assert under.index("# About the loop") < under.index("x = 1") < under.index("for item")
    after = changed(edits.statement("function", loop, "x = 1", where="after"))
    assert "        call(item, key=two)\n    x = 1\n" in after
    gone = changed(edits.statement("function", Match("return", "0"), "", where="instead"))
    assert "return 0" not in gone


def test_statements_are_wrapped_and_keep_their_text() -> None:
    text = changed(
        edits.wrap(
            "function", Match("for", "range(one)"), Match("for", "range(one)"), "with x:", "done()"
        )
    )
    assert (
        "    with x:\n        # About the loop.\n        for item in range(one):\n"
        "            call(item, key=two)\n        done()\n"
    ) in text


def test_what_is_wrapped_can_have_clauses_behind_it(tmp_path: Path) -> None:
    """`try`, with `except` and `else` from a function that is written for that."""
    file = tmp_path / "code.py"
    file.write_text(
        "def clauses():\n    try:\n        look()\n    except OSError:\n        # Why.\n"
        "        again()\n    else:\n        done()\n"
    )
    footer = code.after_try(file, "clauses")
    loop = Match("for", "range(one)")
    text = changed(edits.wrap("function", loop, loop, "try:", footer=footer))
    assert (
        "    try:\n        # About the loop.\n        for item in range(one):\n"
        "            call(item, key=two)\n    except OSError:\n        # Why.\n"
        "        again()\n    else:\n        done()\n    if one and (\n"
    ) in text
    other = tmp_path / "other.py"
    other.write_text("def clauses():\n    look()\n")
    with pytest.raises(ExportError, match=r"clauses in other\.py does not end in a try"):
        code.after_try(other, "clauses")


def test_expressions_are_replaced_as_often_as_was_said() -> None:
    assert "call(item, key=two.upper())" in changed(
        edits.expression("function", "two", "{}.upper()", count=2)
    )
    with pytest.raises(DoesNotFit, match="has `two` 2 times, expected 1"):
        changed(edits.expression("function", "two", "x"))


def test_parameters_and_arguments() -> None:
    assert 'two: str = "a", new: int = 0)' in changed(
        edits.parameter("function", "new: int = 0", after="two", inline=True)
    )
    assert "        other: float = 0.5,\n        new: int = 0,\n    ):" in changed(
        edits.parameter("Thing.method", "new: int = 0", after="other")
    )
    assert "call(item, key=two, new=1)" in changed(
        edits.argument("function", "call", "new=1", after="key")
    )


def test_a_signature_that_became_too_long_is_broken() -> None:
    text = changed(edits.parameter("function", f"{'n' * 40}: int = 0", after="two", inline=True))
    name = "n" * 40
    assert f'def function(\n    one: int, two: str = "a", {name}: int = 0\n) -> int:\n' in text


def test_imports_are_sorted_in() -> None:
    text = changed(
        edits.imports("import math", "from speculators.train.data import beta", "import aiohttp")
    )
    order = ["import json", "import math", "from pathlib", "import aiohttp", "import torch"]
    assert sorted(order, key=text.index) == order
    assert "from speculators.train.data import alpha, beta, omega\n" in text
    assert changed(edits.imports("import json")) == SOURCE


def test_an_import_of_a_kind_that_is_not_there_gets_a_section() -> None:
    text = changed(edits.imports("import json"), text="import torch\n\nx = 1\n")
    assert text == "import json\n\nimport torch\n\nx = 1\n"
    text = changed(edits.imports("import torch"), text="import json\n\nx = 1\n")
    assert text == "import json\n\nimport torch\n\nx = 1\n"


def test_decorators_go_above_what_is_there() -> None:
    text = changed(edits.decorate("Thing.method", "@first", "@second(1)"))
    assert "    second: int = 2\n\n    @first\n    @second(1)\n    def method(\n" in text
    again = changed(edits.decorate("Thing.method", "@zero"), text=text)
    assert "    @zero\n    @first\n    @second(1)\n    def method(\n" in again


def test_bases_docstrings_and_conditions() -> None:
    assert "class Thing(BaseException):" in changed(edits.bases("Thing", "BaseException"))
    text = changed(edits.docstring("Thing", "One.\n\nTwo."))
    assert '    """One.\n\n    Two.\n    """\n' in text
    text = changed(edits.condition("function", Match("if", "one and..."), "not forced"))
    assert "    if (\n        not forced\n        and one\n        and (\n" in text
    text = changed(edits.merge_ifs("Thing.method", Match("if", "long")))
    assert "        if long and (other):\n            # Why.\n            call(long)\n" in text


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (edits.insert("x = 1", after="missing"), "has no missing"),
        (edits.body("Thing", "pass"), "is a class, not a function"),
        (edits.statement("function", Match("call", "absent"), "x", where="after"), "no statement"),
        (edits.statement("function", Match("return"), "x", where="after"), "2 statements `return`"),
        (edits.parameter("function", "x", after="absent"), "no parameter absent"),
        (edits.argument("function", "call", "x=1", after="absent"), "calls call"),
        (edits.bases("function", "X"), "no class with a base"),
    ],
)
def test_what_is_not_there_is_one_sentence(edit: Edit, says: str) -> None:
    with pytest.raises(DoesNotFit, match=says):
        changed(edit)


def test_a_file_that_is_no_python_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="not readable as Python"):
        Source("def broken(:", "module.py")


NAMES = st.sampled_from(["alpha", "beta", "gamma"])


@given(st.permutations(["alpha", "beta", "gamma"]), NAMES, st.booleans())
def test_an_insertion_leaves_every_other_definition_as_it_is(
    order: list[str], beside: str, after: bool
) -> None:
    text = "import json\n" + "".join(
        f"\n\n# {name} — comment\n@decorated\ndef {name}(a,\n  b):\n    return a  # {name}\n"
        for name in order
    )
    edit = edits.insert("def new():\n    pass", **{"after" if after else "before": beside})
    result = Source(changed(edit, text=text), "module.py")
    original = Source(text, "module.py")
    for name in order:
        spans = [
            "".join(source.line(row) for row in range(first, last + 1))
            for source in (original, result)
            for first, last in [source.rows(source.definition(name))]
        ]
        assert spans[0] == spans[1]
    names = [node.name for node in result.tree.body if isinstance(node, ast.FunctionDef)]
    expected = list(order)
    expected.insert(order.index(beside) + after, "new")
    assert names == expected


LISTED = """\
# Heading

- **`--one`** (int) The first
  in two lines.

- **`--two`** (flag) Last of its section.

## Next

Text about `--one`.
"""


def test_a_flag_s_entry_is_added_and_amended() -> None:
    source = Source(LISTED, "docs/cli/train.md")
    text = edits.flag("--one", then="**`--new`** (int) Between.").change(source)
    assert text == LISTED.replace("- **`--two`**", "- **`--new`** (int) Between.\n\n- **`--two`**")
    text = edits.flag("--two", "And more.", then="**`--new`** Before the heading.").change(source)
    assert text == LISTED.replace(
        "section.\n\n", "section. And more.\n\n- **`--new`** Before the heading.\n\n"
    )


def test_a_flag_that_is_not_documented_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="0 entries for --three"):
        edits.flag("--three", "more").change(Source(LISTED, "docs/cli/train.md"))
