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


def trainer(name: str) -> dict[str, dict[str, float]]:
    """Milliseconds a step (min, median, max) of each arm of upstream's trainer."""
    arms = json.loads((RESULTS / f"{name}.json").read_text())["arms"]
    return {
        arm["name"]: {of: 1000 * arm["step_s"][of] for of in ("min", "median", "max")}
        for arm in arms
    }


def test_the_table_of_the_trainer_is_the_file() -> None:
    found, said = trainer("trainer_rate_h200"), (RESULTS.parent / "README.md").read_text()
    labels = {
        "upstream, every step logged": "upstream, every step logged (its default)",
        "overlay": "overlay (every tenth step logged, as the recipe)",
    }
    for name, step in found.items():
        share = f"{step['median'] / found['overlay']['median']:.2f}"
        share = "1" if name == "overlay" else share.removeprefix("0")
        row = (
            f"| {labels.get(name, name)} | {step['median']:.1f} ({step['min']:.1f}-"
            f"{step['max']:.1f}) | {share} |"
        )
        assert row in said.splitlines()
    assert len(found) == 9


def test_the_loader_was_what_the_trainer_took_beside_its_step() -> None:
    found = trainer("trainer_rate_h200")
    overlay, unlocked = (
        found[name]["median"] for name in ("overlay", "overlay, memory given back unlocked")
    )
    bare = 1000 * step_s(settings("h200"), *ALL)
    assert overlay - bare == pytest.approx(21, abs=0.5)
    assert overlay - found["overlay, batches at hand"]["median"] == pytest.approx(14, abs=0.5)
    assert overlay - unlocked == pytest.approx(11, abs=0.5)
    equal = found["upstream, every tenth step logged"]["median"] / unlocked
    assert equal == pytest.approx(1.53, abs=0.005)


def test_a_batch_s_memory_given_back_without_the_lock_is_a_faster_trainer() -> None:
    found = trainer("trainer_rate_release_h200")
    ours, without = found["overlay"], found["overlay -unlocked_batch_release"]
    said = (RESULTS.parent / "README.md").read_text()
    assert (
        f"**{ours['median']:.1f} ms ({ours['min']:.1f}-{ours['max']:.1f}) with it, "
        f"{without['median']:.1f} ({without['min']:.1f}-{without['max']:.1f}) without**"
    ) in said
    assert without["median"] / ours["median"] == pytest.approx(1.16, abs=0.005)
    assert ours["max"] < without["median"]


def test_another_host_leaves_less_to_win() -> None:
    found = json.loads((RESULTS / "train_step_again_h200.json").read_text())["settings"]
    upstream, ours = found
    assert ours["setting"]["patches"] == list(ALL)
    assert ours["weights_sha256"] == upstream["weights_sha256"]
    medians = [1000 * one["step_s"]["median"] for one in found]
    assert medians == pytest.approx([41.5, 32.9], abs=0.05)
    assert medians[0] / medians[1] == pytest.approx(1.26, abs=0.005)


def test_what_plan_takes_for_a_step_of_the_trainer() -> None:
    found = trainer("trainer_rate_h200")
    today = trainer("trainer_rate_release_h200")["overlay"]["median"]
    assert today == pytest.approx(1000 * plan_costs.TRAINER_STEP_S, abs=0.5)
    slower = found["overlay, memory given back unlocked"]["median"]
    assert slower == pytest.approx(1000 * plan_costs.SLOWER_HOST_STEP_S, abs=0.5)
    kernels = found["overlay, deterministic"]["median"] / found["overlay"]["median"]
    assert kernels == pytest.approx(plan_costs.DETERMINISTIC_TRAINER, abs=0.005)
    bare = step_s(settings("h200"), *ALL)
    assert bare == pytest.approx(plan_costs.BARE_STEP_S, abs=0.0005)


def test_the_kinds_of_work_in_a_step() -> None:
    kinds = {name: round(1000 * s, 1) for name, s in settings("h200")[ALL]["kinds_s"].items()}
    said = (RESULTS.parent / "README.md").read_text()
    order = (
        "matrix products", "attention", "loss and accuracy", "casts, copies, fills",
        "optimizer and clipping",
    )  # fmt: skip
    assert ", ".join(f"{name} {kinds[name]}" for name in order) in said


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
