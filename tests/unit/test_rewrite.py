"""A function whose source has an expression replaced: the same function but for that."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable

import pytest

from speculators_patches.export.problems import DoesNotFit
from speculators_patches.rewrite import misfit, rewritten

CALLS: list[str] = []


def noted(function: Callable[..., int]) -> Callable[..., int]:
    @functools.wraps(function)
    def call(*arguments: int) -> int:
        CALLS.append(function.__qualname__)
        return function(*arguments)

    return call


class Owner:
    @noted
    def method(self, number: int) -> int:
        # The line of the division is asked for below.
        return 10 // number + 1


class Heir(Owner):
    def method(self, number: int) -> int:
        return super().method(number) + 3


def test_what_is_replaced_is_what_runs_behind_the_same_decorators() -> None:
    made = rewritten(Owner.method, {"10 // number": "12 // number"})
    CALLS.clear()
    assert (made(Owner(), 3), Owner().method(3)) == (5, 4)
    assert len(CALLS) == 2
    bare = inspect.unwrap(made)
    assert {CALLS[1], made.__qualname__, bare.__qualname__} == {"Owner.method"}
    assert bare.__code__.co_qualname == "Owner.method"
    assert inspect.signature(made) == inspect.signature(Owner.method)


def test_a_function_that_needs_its_surroundings_is_refused() -> None:
    with pytest.raises(DoesNotFit, match=r"Heir.method has a closure \(__class__\)"):
        rewritten(Heir.method, {"3": "4"})


def test_a_traceback_names_the_line_of_the_source() -> None:
    places = []
    other = rewritten(Owner.method, {"10 // number + 1": "10 // number + 2"})
    for function in (Owner.method, other):
        with pytest.raises(ZeroDivisionError) as caught:
            function(Owner(), 0)
        last = traceback.extract_tb(caught.tb)[-1]
        places.append((last.filename, last.lineno))
    assert places[0] == places[1]


@pytest.mark.parametrize(("old", "times"), [("11 // number", 0), ("int", 2)])
def test_another_source_than_the_one_that_is_known_is_refused(old: str, times: int) -> None:
    says = f"Owner.method has `{old}` {times} times, expected 1"
    with pytest.raises(DoesNotFit, match=says):
        rewritten(Owner.method, {old: "x"})
    assert misfit(Owner.method, {old: "x"}) == says
    assert misfit(Owner.method, {"10 // number": "x"}) is None
