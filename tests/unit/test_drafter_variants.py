"""What a variant is trained as, and what is read out of a failed step's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.arms import ArmError
from benchmarks.drafter_kinds import KINDS, last_error
from benchmarks.drafter_variants import EXPERIMENTS, heldout, main
from benchmarks.predict.evaluate import BLOCK, GREEDY, PROBABILISTIC, Row
from benchmarks.predict.walk import Counts
from benchmarks.variant_differences import brief, compare, over_seeds, pooled, rounded
from benchmarks.variant_drafters import parse, scaled


def test_what_is_ours_is_taken_out_of_upstream_s_flags() -> None:
    found = parse("x y=--skip softcap_targets --lr 1e-3 --scale-head 0.8 --mask-unsayable")
    assert found.name == "x y"
    assert (found.flags, found.skip) == (("--lr", "1e-3"), ("softcap_targets",))
    assert (found.scale, found.mask) == (0.8, True)
    for wrong, says in (
        ("nameless", "name=flags"),
        ("x=--scale-head nine", "not a number"),
        ("x=--scale-head -1", "above 0"),
        ("x=--seed 3", "--seeds"),
        ("x=--lr 1 --then --loss-fn tv --scale-head 0.8", "--scale-head behind --then"),
    ):
        with pytest.raises(ArmError, match=says):
            parse(wrong)


def test_a_second_training_starts_from_the_first_one_s() -> None:
    found = parse("x=--skip softcap_targets --lr 1 --scale-head 0.8 --then --loss-fn tv")
    assert (found.flags, found.then) == (("--lr", "1"), ("--loss-fn", "tv"))
    assert found.first == parse("x=--skip softcap_targets --lr 1")
    assert found.trained_as(1) != found.first.trained_as(1)
    assert parse("x=--then").then == ()


def test_variants_of_one_training_share_it_and_no_others_do() -> None:
    assert parse("a=--scale-head 0.8").trained_as() == parse("b=").trained_as() == "base"
    every = [parse(v) for variants in EXPERIMENTS.values() for v in variants]
    by_training = {
        (v.flags, v.skip, v.mask, v.then, s): v.trained_as(s) for v in every for s in (0, 1, 2)
    }
    assert len(set(by_training.values())) == len(by_training)


def test_a_run_without_its_states_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vanilla" / "prepare" / "dataset").mkdir(parents=True)
    given = ["--run", str(tmp_path), "--prompts", "2", "--variant", "a=", "--out", str(tmp_path)]
    assert main(given) == 2
    assert "extract/hidden_states" in capsys.readouterr().err
    assert main([*given, "--variant", "a=--lr 1"]) == 2
    assert "a name" in capsys.readouterr().err


def test_held_out_prompts_are_of_both_kinds_and_distinct() -> None:
    found = heldout(24)
    assert [p.kind for p in found] == ["harmless"] * 24 + ["refused"] * 24
    assert len({p.id for p in found}) == 48


def row(prompt: str, accepted: float, temperature: float = 0.7) -> Row:
    counts = (Counts(10.0, (accepted,)),)
    ways = {GREEDY: counts, PROBABILISTIC: counts, BLOCK: counts}
    return Row(prompt, "w", temperature, 0, 11, 10, ways, {}, (0,), (0.0,), (0.0,), (), ())


def test_differences_are_paired_by_prompt_and_told_seed_by_seed() -> None:
    """Prompts differ by far more than the variants do; each seed has its own difference."""
    gain = {0: 0.5, 1: 1.0, 2: 1.5}
    base = {s: [row(f"p{k}", k / 2) for k in range(12)] for s in gain}
    better = {s: [row(f"p{k}", k / 2 + g) for k in range(12)] for s, g in gain.items()}
    greedy, probabilistic = compare({"base": base, "better": better}, 1, "base")
    assert (greedy["drafting"], probabilistic["drafting"]) == (GREEDY, PROBABILISTIC)
    assert greedy["tokens_a_step"]["value"] == pytest.approx(0.1)
    assert greedy["tokens_a_step"]["high"] - greedy["tokens_a_step"]["low"] < 1e-6
    assert greedy["acceptance"][0]["value"] == pytest.approx(0.1)
    assert greedy["by_seed"] == pytest.approx({0: 0.05, 1: 0.1, 2: 0.15})
    assert greedy["over_seeds"]["low"] == pytest.approx(0.1 - 4.303 * 0.05 / 3**0.5)
    assert len(pooled(base)) == 36
    cold = {s: [row("p", 1, 0.0), row("q", 2, 0.0)] for s in gain}
    assert len(compare({"base": cold, "same": cold}, 1, "base")) == 1  # one way of drafting


def test_what_is_kept_of_a_prediction_is_all_workloads_at_the_depth() -> None:
    ways = (GREEDY, PROBABILISTIC, BLOCK)
    cells = [
        {"temperature": t, "workload": w, "prompts": 3, "starts": 9, "measures": {"kl": [0.1]},
         "tokens_a_step": {way: {1: {"value": 1.5}, 2: {"value": 2.0}} for way in ways},
         "acceptance": {way: [0.5, 0.4] for way in ways}}
        for t in (0.0, 0.7) for w in ("all", "w")
    ]  # fmt: skip
    kept = brief(cells, 2)
    assert [c["temperature"] for c in kept] == [0.0, 0.7]
    assert kept[0]["tokens_a_step"][BLOCK] == {"value": 2.0}
    assert brief([c for c in cells if c["workload"] == "w"], 2) == kept
    assert rounded({"a": [0.123456789, None, "x"]}) == {"a": [0.12346, None, "x"]}


def test_too_few_seeds_have_no_interval() -> None:
    assert over_seeds([0.1, 0.2]) is None


def test_a_scaled_head_is_the_softmax_at_that_temperature(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    drafter = tmp_path / "base" / "checkpoints" / "5"
    drafter.mkdir(parents=True)
    weights = {"lm_head.weight": torch.randn(4, 3), "norm.weight": torch.ones(3)}
    save_file(weights, str(drafter / "model.safetensors"))
    (drafter / "config.json").write_text("{}")
    found = load_file(str(scaled(drafter, 0.5, tmp_path) / "model.safetensors"))
    x = torch.randn(3)
    assert torch.allclose(
        (found["lm_head.weight"] @ x).softmax(-1), (weights["lm_head.weight"] @ x / 0.5).softmax(-1)
    )
    assert torch.equal(found["norm.weight"], weights["norm.weight"])
    assert scaled(drafter, 1.0, tmp_path) == drafter


def test_the_cause_is_found_in_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "(APIServer pid=7) ERROR 11-24 08:49:16 [core.py:9] Traceback (most recent call last):\n"
        "(APIServer pid=7) ERROR 11-24 08:49:16 [core.py:9] ValueError: no such head\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
        "bye\n"
    )
    assert last_error(log) == "ValueError: no such head"
    log.write_text("pydantic.ValidationError: 1 validation error for C\n  Value error, V1 cannot\n")
    assert last_error(log).endswith("1 validation error for C: Value error, V1 cannot")
    log.write_text("only words\n\n")
    assert last_error(log) == "only words"


def test_every_kind_of_the_issue_is_tried() -> None:
    assert [k.name for k in KINDS] == ["eagle3", "peagle", "dflash", "dspark", "mtp"]
