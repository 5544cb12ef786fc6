"""A function again, with a few expressions of its source replaced.

For a defect in the middle of a long function of upstream. Its source is known to the letter where a
patch is applied (`drift.fingerprint`), so what is compiled is too.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


def misfit(function: Callable[..., Any], changes: Mapping[str, str]) -> str | None:
    """Why `rewritten` would refuse, as a clause, or None."""
    plain = inspect.unwrap(function)
    if plain.__code__.co_freevars:
        return f"{plain.__qualname__} has a closure ({', '.join(plain.__code__.co_freevars)})"
    source = "".join(inspect.getsourcelines(plain)[0])
    for old in changes:
        if (times := source.count(old)) != 1:
            return f"{plain.__qualname__} has `{old}` {times} times, not once"
    return None


def rewritten(function: Callable[..., Any], changes: Mapping[str, str]) -> Any:
    """What the source of `function` defines, decorators included, after `changes`.

    Args:
        function: a plain function or one wrapped by its decorators, without a closure (so without
            `super()`).
        changes: expression -> expression; each stands once in the source. Lines stay where they
            are, so that a traceback still shows upstream's.

    Raises:
        ValueError: an expression is not there, or more than once, or there is a closure.
    """
    if (problem := misfit(function, changes)) is not None:
        raise ValueError(problem)
    plain = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(plain)
    source = textwrap.dedent("".join(lines))
    for old, new in changes.items():
        source = source.replace(old, new)
    tree = ast.increment_lineno(ast.parse(source), first - 1)
    code = compile(
        tree, plain.__code__.co_filename, "exec",
        flags=plain.__code__.co_flags & _FUTURES, dont_inherit=True,
    )  # fmt: skip
    found: dict[str, Any] = {}
    exec(code, plain.__globals__, found)
    (made,) = found.values()
    bare = inspect.unwrap(made)
    bare.__code__ = bare.__code__.replace(co_qualname=plain.__code__.co_qualname)
    bare.__qualname__ = made.__qualname__ = plain.__qualname__
    return made
