"""A function again, with a few expressions of its source replaced.

For a defect in the middle of a long function of upstream. Its source is known to the letter where a
patch is applied (`drift.fingerprint`), so what is compiled is too. The change is made as the pull
request makes it (`export.edits.expression`).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from speculators_patches.export.edits import expression
from speculators_patches.export.problems import DoesNotFit
from speculators_patches.export.source import Source


def misfit(function: Callable[..., Any], changes: Mapping[str, str]) -> str | None:
    """Why `rewritten` would refuse, as a clause, or None."""
    try:
        _changed(inspect.unwrap(function), changes)
    except DoesNotFit as problem:
        return str(problem)
    return None


def rewritten(function: Callable[..., Any], changes: Mapping[str, str]) -> Any:
    """What the source of `function` defines, decorators included, after `changes`.

    Args:
        function: a plain function or one wrapped by its decorators, without a closure (so without
            `super()`).
        changes: expression -> expression, both on one line; each stands once in the source. Lines
            stay where they are, so that a traceback still shows upstream's.

    Raises:
        DoesNotFit: an expression is not there, or more than once, or there is a closure.
    """
    plain = inspect.unwrap(function)
    first = inspect.getsourcelines(plain)[1]
    tree = ast.increment_lineno(ast.parse(_changed(plain, changes)), first - 1)
    code = compile(
        tree, plain.__code__.co_filename, "exec",
        flags=plain.__code__.co_flags & annotations.compiler_flag, dont_inherit=True,
    )  # fmt: skip
    found: dict[str, Any] = {}
    exec(code, plain.__globals__, found)
    (made,) = found.values()
    bare = inspect.unwrap(made)
    bare.__code__ = bare.__code__.replace(co_qualname=plain.__code__.co_qualname)
    bare.__qualname__ = made.__qualname__ = plain.__qualname__
    return made


def _changed(plain: Any, changes: Mapping[str, str]) -> str:
    if held := plain.__code__.co_freevars:
        raise DoesNotFit(f"{plain.__qualname__} has a closure ({', '.join(held)})")
    text = textwrap.dedent(inspect.getsource(plain))
    for old, new in changes.items():
        text = expression("", old, new).change(Source(text, plain.__qualname__))
    return text
