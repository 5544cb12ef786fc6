"""A function again, with a few expressions of its source replaced.

For a defect in the middle of a long function of upstream. Its source is known to the letter where a
patch is applied (`drift.fingerprint`), so what is compiled is too.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any


def rewritten(function: Callable[..., Any], changes: Mapping[str, str]) -> Any:
    """What the source of `function` defines, decorators included, after `changes`.

    Args:
        function: a plain function or one wrapped by its decorators, without a closure.
        changes: expression -> expression; each stands once in the source. Lines stay where they
            are, so that a traceback still shows upstream's.

    Raises:
        ValueError: an expression is not there, or more than once.
    """
    plain = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(plain)
    source = textwrap.dedent("".join(lines))
    for old, new in changes.items():
        if source.count(old) != 1:
            raise ValueError(
                f"{plain.__qualname__} has `{old}` {source.count(old)} times, not once"
            )
        source = source.replace(old, new)
    tree = ast.increment_lineno(ast.parse(source), first - 1)
    found: dict[str, Any] = {}
    exec(compile(tree, plain.__code__.co_filename, "exec"), plain.__globals__, found)
    (made,) = found.values()
    inspect.unwrap(made).__qualname__ = made.__qualname__ = plain.__qualname__
    return made
