"""When a sample that several servers failed is at fault, and when its servers are."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from speculators_patches.strikes import Strikes

EIGHT = [f"http://s{number}" for number in range(8)]


def struck(urls: list[str], *failed: str, limit: int = 3) -> Strikes:
    strikes = Strikes(urls, limit)
    for url in failed:
        strikes.add(url)
    return strikes


def up(*urls: str) -> Callable[[str], bool]:
    return lambda url: url in urls


def test_with_one_server_each_failure_counts() -> None:
    assert not struck(EIGHT[:1], *EIGHT[:1] * 2).enough(up(*EIGHT))
    assert struck(EIGHT[:1], *EIGHT[:1] * 3).enough(up())


def test_servers_that_stay_down_do_not_count() -> None:
    for number in range(6):
        assert not struck(EIGHT, *EIGHT[:number]).enough(up(*EIGHT[number:]))


def test_servers_that_answer_count() -> None:
    assert struck(EIGHT, *EIGHT[:3]).enough(up(*EIGHT))
    assert not struck(EIGHT, *EIGHT[:3]).enough(up(*EIGHT[1:]))
    assert struck(EIGHT, *EIGHT[:4]).enough(up(*EIGHT[1:]))


def test_a_server_that_was_asked_again_was_back() -> None:
    first, second = EIGHT[:2]
    assert not struck(EIGHT, first, second, first).enough(up())
    assert struck(EIGHT, first, second, first, second, first).enough(up())


def test_what_kills_six_does_not_meet_the_last_two() -> None:
    assert struck(EIGHT, *EIGHT[:6]).enough(up(EIGHT[7]))
    assert not struck(EIGHT, *EIGHT[:6]).enough(up())  # it may be the machine that they share


def test_nobody_is_asked_before_it_matters() -> None:
    def never(url: str) -> bool:
        raise AssertionError(url)

    assert not struck(EIGHT, *EIGHT[:2]).enough(never)
    assert struck(EIGHT, *EIGHT[:1] * 4).enough(never)


@given(st.integers(1, 10), st.integers(1, 4), st.data())
def test_no_sample_fails_without_end(servers: int, limit: int, data: st.DataObject) -> None:
    """Whichever server fails it next, and whichever are up, it is at fault in time."""
    urls = [f"http://s{number}" for number in range(servers)]
    strikes = Strikes(urls, limit)
    up_now: set[str] = set()
    while not strikes.enough(up(*up_now)):
        strikes.add(data.draw(st.sampled_from(urls)))
        up_now = data.draw(st.sets(st.sampled_from(urls)))
        assert len(strikes) <= (limit if servers == 1 else servers + limit)
    assert len(strikes) >= limit
