"""What a variant is trained as, and what is read out of a failed step's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.arms import ArmError
from benchmarks.drafter_kinds import KINDS, last_error
from benchmarks.drafter_variants import EXPERIMENTS, parse, scaled


def test_what_is_ours_is_taken_out_of_upstream_s_flags() -> None:
    found = parse("x y=--skip softcap_targets --lr 1e-3 --scale-head 0.8 --mask-unsayable")
    assert found.name == "x y"
    assert (found.flags, found.skip) == (("--lr", "1e-3"), ("softcap_targets",))
    assert (found.scale, found.mask) == (0.8, True)
    with pytest.raises(ArmError, match="name=flags"):
        parse("nameless")


def test_variants_of_one_training_share_it_and_no_others_do() -> None:
    assert parse("a=--scale-head 0.8").trained_as == parse("b=").trained_as == "base"
    every = [parse(v) for variants in EXPERIMENTS.values() for v in variants]
    by_training = {(v.flags, v.skip, v.mask): v.trained_as for v in every}
    assert len(set(by_training.values())) == len(by_training)


def test_a_scaled_head_is_the_softmax_at_that_temperature(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    drafter = tmp_path / "base" / "checkpoints" / "5"
    drafter.mkdir(parents=True)
    weights = {"lm_head.weight": torch.randn(4, 3), "norm.weight": torch.ones(3)}
    save_file(weights, str(drafter / "model.safetensors"))
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
    log.write_text("only words\n\n")
    assert last_error(log) == "only words"


def test_every_kind_of_the_issue_is_tried() -> None:
    assert [k.name for k in KINDS] == ["eagle3", "peagle", "dflash", "dspark", "mtp"]
