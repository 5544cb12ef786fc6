"""Which of two validations is the better one, by loss or by expected tokens a step."""

from __future__ import annotations

import pytest

from speculators_patches.step_checkpoints import best
from speculators_patches.step_checkpoints.settings import BadSetting, take

# The first has the lower loss, the second is better to draft with.
SURE = {"loss_epoch": 0.40, "accept_0_epoch": 0.80, "accept_1_epoch": 0.60,
        "expect_0_epoch": 0.70, "expect_1_epoch": 0.45}  # fmt: skip
USEFUL = {"loss_epoch": 0.45, "accept_0_epoch": 0.82, "accept_1_epoch": 0.64,
          "expect_0_epoch": 0.69, "expect_1_epoch": 0.44}  # fmt: skip


def test_each_kind_has_its_own_best() -> None:
    def better(kind: str) -> dict[str, float]:
        return min((SURE, USEFUL), key=lambda m: best.value(m, kind) or 0.0)

    assert better("loss") is SURE
    assert better("greedy-tokens") is USEFUL
    assert better("probabilistic-tokens") is SURE
    assert best.value(USEFUL, "greedy-tokens") == pytest.approx(-2.46)


def test_what_is_not_reported_is_never_best() -> None:
    assert best.value({"loss_epoch": 1.0}, "probabilistic-tokens") is None
    assert best.value({}, "loss") is None


def test_the_log_says_which_kind() -> None:
    assert best.told(0.4, "loss") == "loss 0.400000"
    assert best.told(-2.46, "greedy-tokens") == "greedy-tokens: 2.4600 a step"


def test_the_flag_and_its_variable() -> None:
    variable = "SPECULATORS_PATCHES_BEST_BY"
    assert take(["--lr", "1"], {})[0].best_by == "loss"
    settings, rest = take(["--best-by", "greedy-tokens", "--lr", "1"], {variable: "loss"})
    assert (settings.best_by, rest) == ("greedy-tokens", ["--lr", "1"])
    assert take([], {variable: "probabilistic-tokens"})[0].best_by == "probabilistic-tokens"
    with pytest.raises(BadSetting, match="not one of loss, greedy-tokens"):
        take(["--best-by", "luck"], {})
