"""When to save and what to keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches.checkpointing.manifest import Manifest
from speculators_patches.checkpointing.policy import Keep, When, doomed
from speculators_patches.checkpointing.reading import Record


def record(sequence: int, step: int, *, best: bool = False, problem: str = "") -> Record:
    name = f"ckpt-{sequence:06d}-step-{step:08d}"
    tags = ("best",) if best else ()
    manifest = None if problem else Manifest(name, sequence, step, tags, "", 1, {})
    return Record(Path(name), sequence, step, manifest, problem)


def steps(names: list[str]) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in names]


def test_keeps_last_best_and_every() -> None:
    records = [record(i, 10 * i, best=i in (2, 4)) for i in range(1, 11)]
    assert steps(doomed(records, Keep(last=2))) == [10, 20, 30, 50, 60, 70, 80]
    assert steps(doomed(records, Keep(last=2, best=False))) == [10, 20, 30, 40, 50, 60, 70, 80]
    kept_every = steps(doomed(records, Keep(last=1, best=False, every_steps=25)))
    assert kept_every == [10, 20, 40, 60, 70, 90]  # 30, 50, 80 start a stretch; 100 is the newest


def test_torn_ones_are_neither_counted_nor_removed() -> None:
    records = [record(i, i, problem="torn" if i in (3, 4, 5) else "") for i in range(1, 6)]
    assert doomed(records, Keep(last=2)) == []
    assert steps(doomed(records, Keep(last=1))) == [1]


@given(
    st.lists(st.tuples(st.integers(0, 99), st.booleans(), st.booleans()), max_size=12),
    st.integers(1, 4),
    st.booleans(),
    st.none() | st.integers(1, 30),
)
def test_pruning_is_stable_and_keeps_the_newest(
    plan: list[tuple[int, bool, bool]], last: int, best: bool, every: int | None
) -> None:
    records = [
        record(i, step, best=is_best, problem="torn" if torn else "")
        for i, (step, is_best, torn) in enumerate(plan)
    ]
    keep = Keep(last, best, every)
    gone = set(doomed(records, keep))
    left = [r for r in records if r.name not in gone]
    good = [r for r in records if not r.problem]
    assert good[-last:] == [r for r in left if not r.problem][-last:]
    assert doomed(left, keep) == []
    if every:  # what marks a stretch stays, whatever is saved later
        later = [*left, record(len(plan), 100)]
        assert gone.isdisjoint(doomed(later, keep))


@given(st.integers(1, 50), st.lists(st.booleans(), min_size=1, max_size=200))
def test_a_delayed_save_stays_due_until_it_begins(every: int, free: list[bool]) -> None:
    when, last = When(every_steps=every, every_minutes=None), 0
    for step, is_free in enumerate(free, 1):
        due = when.due_by_steps(step, last)
        assert due == any(s % every == 0 for s in range(last + 1, step + 1))
        if due and is_free:
            last = step


def test_time_and_neither() -> None:
    assert When(None, 0.5).due_by_time(30)
    assert not When(None, 0.5).due_by_time(29.9)
    assert not When(None, None).due_by_time(1e9)
    assert not When(None, None).due_by_steps(10**6, 0)


@pytest.mark.parametrize(
    ("bad", "flag"),
    [
        (lambda: When(every_steps=0), "--checkpoint-every-steps"),
        (lambda: When(every_minutes=0), "--checkpoint-every-minutes"),
        (lambda: When(every_minutes=float("nan")), "--checkpoint-every-minutes"),
        (lambda: Keep(last=0), "--checkpoint-keep"),
        (lambda: Keep(every_steps=-1), "--checkpoint-keep-every"),
    ],
)
def test_bad_settings_name_the_flag(bad: object, flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        bad()  # type: ignore[operator]
