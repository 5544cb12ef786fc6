"""What is said about a training step on an H100 and an H200, against the files it was read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipes import plan_costs
from speculators_patches import patches

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
QUICK = ("quick_draft_masks", "accuracy_without_waiting")
ALL = (*QUICK, "accumulators_on_device")


def settings(gpu: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    found = json.loads((RESULTS / f"train_step_host_{gpu}.json").read_text())["settings"]
    return {
        (*one["setting"]["patches"], *["deterministic"] * one["setting"]["deterministic"]): one
        for one in found
    }


def step_s(found: dict[tuple[Any, ...], dict[str, Any]], *names: str) -> float:
    return float(found[names]["step_s"]["median"])


def test_two_patches_train_the_same_bits_in_four_fifths_of_the_time() -> None:
    found = settings("h100")
    upstream = found[()]
    for names, share in ((QUICK[:1], 0.89), (QUICK[1:], 0.92), (QUICK, 0.81)):
        assert found[names]["weights_sha256"] == upstream["weights_sha256"]
        assert found[names]["losses"] == upstream["losses"]
        assert step_s(found, *names) / step_s(found) == pytest.approx(share, abs=0.005)
    assert step_s(found, "deterministic") / step_s(found) == pytest.approx(1.26, abs=0.005)


@pytest.mark.parametrize(("kernels", "times"), [((), 1.43), (("deterministic",), 1.60)])
def test_three_patches_train_the_same_bits_a_third_faster(
    kernels: tuple[str, ...], times: float
) -> None:
    found = settings("h200")
    for names in (QUICK, ALL):
        assert found[*names, *kernels]["weights_sha256"] == found[kernels]["weights_sha256"]
        assert found[*names, *kernels]["losses"] == found[kernels]["losses"]
    faster = step_s(found, *kernels) / step_s(found, *ALL, *kernels)
    assert faster == pytest.approx(times, abs=0.005)
    alone = step_s(found, *ALL, *kernels) / step_s(found, *QUICK, *kernels)
    assert alone == pytest.approx(0.82 if kernels else 0.95, abs=0.005)


def test_the_table_of_the_h200_is_the_file() -> None:
    found, said = settings("h200"), (RESULTS.parent / "README.md").read_text()
    rows = []
    for kernels, none in (((), "upstream"), (("deterministic",), "deterministic kernels: none")):
        for names, label in (((), none), (QUICK, "the two"), (ALL, "all three")):
            one = found[*names, *kernels]
            least, median, most = (1000 * one["step_s"][of] for of in ("min", "median", "max"))
            share = f"{one['step_s']['median'] / found[()]['step_s']['median']:.2f}".lstrip("0")
            forward, idle = 1000 * one["phases_s"]["forward"], 1000 * one["idle_s"]
            share = {"1.00": "1", ".70": "**.70**"}.get(share, share)
            rows.append(
                f"| {label} | {median:.1f} ({least:.1f}-{most:.1f}) | {share} | {forward:.1f} | "
                f"{idle:.1f} | "
            )
    table = [line for line in said.splitlines() if line.startswith(tuple(rows))]
    assert [line[: len(row)] for line, row in zip(table, rows, strict=True)] == rows


def test_what_deterministic_kernels_cost() -> None:
    found = settings("h200")
    bare = step_s(found, *ALL, "deterministic") / step_s(found, *ALL)
    assert bare == pytest.approx(plan_costs.DETERMINISTIC_BARE, abs=0.005)
    assert step_s(found, "deterministic") == pytest.approx(0.054, abs=0.0005)
    assert step_s(found) == pytest.approx(0.047, abs=0.0005)


def test_what_plan_takes_for_a_step_of_the_trainer() -> None:
    arms = json.loads((RESULTS / "trainer_rate_h200.json").read_text())["arms"]
    said = (RESULTS.parent / "README.md").read_text()
    labels = {
        "upstream": "upstream, every step logged (its default)",
        "overlay, every step logged": "the overlay with the first two patches, every step logged",
        "overlay": "every tenth step logged",
        "overlay +accumulators_on_device": "the third patch too",
        "overlay +accumulators_on_device -finite_guard": "without `finite_guard` besides",
        "overlay, deterministic": "deterministic kernels, two patches",
    }
    for arm in arms:
        least, median, most = (1000 * arm["step_s"][of] for of in ("min", "median", "max"))
        assert f"{labels[arm['name']]} {median:.1f} ({least:.1f}-{most:.1f})" in said, arm["name"]
    found = {arm["name"]: arm["step_s"]["median"] for arm in arms}
    today = found["overlay +accumulators_on_device"]  # by default since
    assert today == pytest.approx(plan_costs.TRAINER_STEP_S, abs=0.0005)
    kernels = found["overlay, deterministic"] / found["overlay"]
    assert kernels == pytest.approx(plan_costs.DETERMINISTIC_TRAINER, abs=0.005)
    assert found["upstream"] / today == pytest.approx(1.47, abs=0.005)
    equally = found["upstream"] / found["overlay, every step logged"]
    assert equally == pytest.approx(1.10, abs=0.005)
    bare = step_s(settings("h200"), *ALL)
    assert bare == pytest.approx(plan_costs.BARE_STEP_S, abs=0.0005)
    assert plan_costs.trainer_step_s(3) == plan_costs.TRAINER_STEP_S
    # What is not the step itself, loading and logging, does not grow with ttt_steps.
    assert plan_costs.trainer_step_s(5) == pytest.approx(0.055 + 0.66 * 0.033)


def test_what_is_worth_it_is_applied_unasked() -> None:
    default = {patch.name for patch in patches.table().values() if patch.default}
    assert default.issuperset(ALL)


def test_a_killed_run_at_real_size_is_the_one_that_was_not() -> None:
    found = json.loads((RESULTS / "kill_and_resume_deterministic_h200.json").read_text())
    assert found["size"]["divide"] == 1
    assert found["bitwise_equal"]
    assert not found["unequal"]
    assert (found["steps"], found["files_compared"]) == (112, 2)
    (kill,) = found["kills"]
    assert kill["was_writing"]
    assert 0 < kill["committed_step"] < found["steps"]


def test_where_a_run_with_deterministic_kernels_left_the_one_that_was_not_killed() -> None:
    found = json.loads((RESULTS / "kill_and_resume_deterministic_h100.json").read_text())
    assert not found["bitwise_equal"]
    alone = dict(found["losses_logged"]["left_alone"])
    killed = found["losses_logged"]["killed"]
    first = next(step for step, loss in killed if loss != alone[step])
    assert (first, alone[first], dict(killed)[first]) == (17, 29.067, 29.066)
    assert found["kills"][0]["committed_step"] == 14
