"""The judge of a server's progress, over sequences of snapshots."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from recipes.vllm.progress import Limits, Seen, Snapshot, Verdict, is_canary_due, see, verdict

LIMITS = Limits(poll_s=1.0, quiet_s=5.0, stall_s=20.0, silent_s=10.0, unhealthy_s=4.0, errors=3)
steps = st.floats(0.01, LIMITS.longest_step_s)


def judged(snapshots: list[Snapshot]) -> list[Verdict]:
    seen, out = Seen(), []
    for snapshot in snapshots:
        seen = see(seen, snapshot, LIMITS)
        out.append(verdict(seen, LIMITS))
    return out


def fine(at: float, work: float, waiting: int = 1) -> Snapshot:
    return Snapshot(at, status=200, work=work, waiting=waiting, errors=0)


@given(
    st.lists(
        st.tuples(
            st.floats(0.01, 9.9),  # seconds without progress, below every limit
            st.integers(0, 20),  # requests that wait
            st.sampled_from(["still", "silent", "no metrics"]),  # what it shows meanwhile
        ),
        min_size=1,
        max_size=40,
    )
)
def test_a_server_that_makes_progress_is_never_blamed(
    course: list[tuple[float, int, str]],
) -> None:
    at, work, snapshots = 0.0, 0.0, [fine(0.0, 0.0)]
    for pause, waiting, manner in course:
        for part in (0.5, 0.9):
            shown = fine(at + pause * part, work, waiting)
            if manner == "silent":
                shown = Snapshot(shown.at)
            elif manner == "no metrics":
                shown = Snapshot(shown.at, status=200)
            snapshots.append(shown)
        at, work = at + pause, work + 1
        snapshots.append(fine(at, work, waiting))
    assert {found.state for found in judged(snapshots)} == {"fine"}


@given(
    before=st.lists(steps, max_size=10),
    pauses=st.lists(steps, min_size=1, max_size=400),
    waits=st.lists(st.booleans(), min_size=400, max_size=400),
    silent=st.lists(st.booleans(), min_size=400, max_size=400),
)
def test_one_that_makes_none_while_somebody_waits_always_is_within_the_bound(
    before: list[float], pauses: list[float], waits: list[bool], silent: list[bool]
) -> None:
    """Also when clients give up and come back, and when it stops answering in between."""
    seen, at, work = see(Seen(), fine(0.0, 0.0), LIMITS), 0.0, 0.0
    for pause in before:
        at, work = at + pause, work + 1
        seen = see(seen, fine(at, work), LIMITS)
    waited = 0.0
    for number, pause in enumerate(pauses):
        at += pause
        now = fine(at, work, waiting=int(waits[number]))
        if silent[number] and waits[number]:
            now = replace(Snapshot(at), waiting=1)
        seen = see(seen, now, LIMITS)
        waited += pause if waits[number] else 0.0
        found = verdict(seen, LIMITS)
        # One step later than the limit at the most; sums of floats differ in the last digits.
        if waited >= LIMITS.stall_s + 1e-6:
            assert not found.is_fine
        elif not any(silent):
            assert found.is_fine or waited > LIMITS.stall_s - 1e-6


def test_a_watcher_that_slept_blames_nobody() -> None:
    """A laptop that was shut for an hour: one pair of snapshots, a few seconds' worth of blame."""
    assert LIMITS.longest_step_s == 18.0
    limits = replace(LIMITS, stall_s=60.0, silent_s=60.0)
    seen = see(Seen(), fine(0.0, 1.0), limits)
    seen = see(seen, fine(3600.0, 1.0), limits)
    assert verdict(seen, limits).is_fine
    assert seen.stalled_s == limits.longest_step_s


def test_progress_wipes_the_slate() -> None:
    course = [fine(0, 1), fine(15, 1), fine(16, 2), fine(31, 2)]
    assert {found.state for found in judged(course)} == {"fine"}


def test_a_new_server_s_counters_begin_at_zero_and_that_is_progress() -> None:
    assert {v.state for v in judged([fine(0, 900), fine(15, 900), fine(16, 0), fine(31, 0)])} == {
        "fine"
    }


def test_each_way_to_fail_is_named() -> None:
    for code, what in ((1, "has ended with code 1"), (134, "was ended by SIGABRT")):
        assert judged([fine(0, 1), Snapshot(1, code=code)])[-1] == Verdict("ended", what)
    assert "SIGKILL" in judged([fine(0, 1), Snapshot(1, code=137)])[-1].what
    assert judged([fine(0, 1), Snapshot(5), Snapshot(10)])[-1].state == "silent"
    sick = [fine(0, 1), Snapshot(2, status=503), Snapshot(4, status=503)]
    assert judged(sick)[-1].state == "unhealthy"
    errors = [replace(fine(at, 1, waiting=0), errors=at) for at in range(4)]
    assert [found.state for found in judged(errors)] == ["fine", "fine", "fine", "failing"]
    assert judged([fine(0, 1), fine(19, 1), fine(21, 1)])[-1].state == "stuck"


def test_an_idle_server_is_asked_something_and_never_blamed() -> None:
    seen = Seen()
    for at in range(0, 1000, 5):
        seen = see(seen, fine(at, 1, waiting=0), LIMITS)
        assert verdict(seen, LIMITS).is_fine
    assert is_canary_due(seen, LIMITS)
    assert not is_canary_due(see(seen, fine(1001, 2, waiting=0), LIMITS), LIMITS)
