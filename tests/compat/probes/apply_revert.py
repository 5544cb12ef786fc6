"""Property: after any sequence of applies, `revert()` leaves upstream's own objects everywhere.

    python -m tests.compat.probes.apply_revert

The real table plus three synthetic patches (see `synthetic`), on the upstream in front.
"""

from __future__ import annotations

import importlib

import speculators.models.eagle3.core
import speculators.train.data
import speculators.train.trainer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import speculators_patches as overlay
from speculators_patches import Verdict, patches
from tests.compat.probes import snapshot, synthetic

synthetic.add_to_table()
HERE = [name for name, patch in patches.table().items() if patch.package == "speculators"]
BY_DEFAULT = [name for name in HERE if patches.table()[name].default]
names = st.lists(st.sampled_from(HERE), max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("apply"), st.none() | names, names, st.booleans()),
        st.tuples(st.just("revert"), st.none(), st.none(), st.none()),
        st.tuples(st.just("status"), st.none(), st.none(), st.none()),
    ),
    max_size=8,
)


def settle() -> None:
    """Imports whatever a first apply imports, so that the snapshot holds all of it."""
    overlay.apply(only=HERE)
    overlay.revert()


def expected(active: set[str], only: list[str] | None, skip: list[str]) -> set[str]:
    asked = set(BY_DEFAULT if only is None else only) - set(skip)
    needed = {row.patch for row in overlay.status().having(Verdict.NEEDED, Verdict.APPLIED)}
    return active | (asked & needed)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck),
          derandomize=True, database=None)  # fmt: skip
@given(steps)
def any_sequence(sequence: list[tuple]) -> None:
    overlay.revert()  # a falsified example may have left something
    active: set[str] = set()
    for what, only, skip, spread in sequence:
        if what == "apply":
            active = expected(active, only, skip)
            report = overlay.apply(only, skip, workers=spread)
        elif what == "revert":
            active = set()
            report = overlay.revert()
            assert not snapshot.changed(BEFORE), snapshot.changed(BEFORE)
        else:
            held = snapshot.take()
            report = overlay.status()
            assert not snapshot.changed(held)
        assert set(report.active) == active, (report.active, active)
        check_stacking(active)
    overlay.revert()
    assert not snapshot.changed(BEFORE), snapshot.changed(BEFORE)
    assert not overlay.revert().active


def check_stacking(active: set[str]) -> None:
    """The two patches of one method wrap each other in the table's order."""
    module, qualname = synthetic.METHOD
    method = getattr(importlib.import_module(module).Trainer, qualname.split(".")[1])
    tags = []
    while hasattr(method, "tag"):
        tags.append(method.tag)
        method = method.inner
    assert tags == [n for n in ("wraps_method_again", "wraps_method") if n in active]
    used = speculators.models.eagle3.core.resolve_target_layer_ids  # bound by name
    assert hasattr(used, "tag") == ("wraps_function_and_classmethod" in active)


settle()
BEFORE = snapshot.take()

if __name__ == "__main__":
    any_sequence()
    print("held")
