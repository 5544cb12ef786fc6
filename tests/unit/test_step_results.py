"""What is said about a training step's speed on an H100, against the file it was read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes.plan_costs import DETERMINISTIC_FACTOR, H100_STEP_S
from speculators_patches import patches

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
QUICK = ("quick_draft_masks", "accuracy_without_waiting")


def settings() -> dict[tuple[Any, ...], dict[str, Any]]:
    found = json.loads((RESULTS / "train_step_host_h100.json").read_text())["settings"]
    return {
        (*one["setting"]["patches"], *["deterministic"] * one["setting"]["deterministic"]): one
        for one in found
    }


def test_both_patches_train_the_same_bits_in_four_fifths_of_the_time() -> None:
    found = settings()
    upstream = found[()]
    for names, share in ((QUICK[:1], 0.89), (QUICK[1:], 0.92), (QUICK, 0.81)):
        assert found[names]["weights_sha256"] == upstream["weights_sha256"]
        assert found[names]["losses"] == upstream["losses"]
        ratio = found[names]["step_s"]["median"] / upstream["step_s"]["median"]
        assert ratio == pytest.approx(share, abs=0.005)
    assert found[QUICK]["step_s"]["median"] == pytest.approx(H100_STEP_S, abs=0.0005)


def test_what_deterministic_kernels_cost() -> None:
    found = settings()
    kernels, upstream = found[("deterministic",)], found[()]
    ratio = kernels["step_s"]["median"] / upstream["step_s"]["median"]
    assert ratio == pytest.approx(DETERMINISTIC_FACTOR, abs=0.005)


def test_what_is_worth_it_is_applied_unasked() -> None:
    default = {patch.name for patch in patches.table().values() if patch.default}
    assert default.issuperset(QUICK)


def test_where_a_run_with_deterministic_kernels_left_the_one_that_was_not_killed() -> None:
    found = json.loads((RESULTS / "kill_and_resume_deterministic_h100.json").read_text())
    assert not found["bitwise_equal"]
    alone = dict(found["losses_logged"]["left_alone"])
    killed = found["losses_logged"]["killed"]
    first = next(step for step, loss in killed if loss != alone[step])
    assert (first, alone[first], dict(killed)[first]) == (17, 29.067, 29.066)
    assert found["kills"][0]["committed_step"] == 14
