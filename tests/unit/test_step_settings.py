"""The flags of step_checkpoints: taken out of upstream's, with variables behind them."""

from __future__ import annotations

import pytest

from speculators_patches.checkpointing.policy import Keep, When
from speculators_patches.step_checkpoints.settings import BadSetting, Settings, take


def test_ours_go_and_upstream_s_stay_in_order() -> None:
    argv = [
        "--lr", "1e-3", "--checkpoint-every-steps", "50", "--checkpoint-freq", "0.5",
        "--checkpoint-every-minutes=2.5", "--resume-despite", "optimizer.lr, model.d2t",
        "--checkpoint-keep", "4", "--checkpoint-keep-every=1000", "--target-layer-ids", "1", "2",
        "--resume-despite", "device",
    ]  # fmt: skip
    settings, rest = take(argv, {})
    assert settings == Settings(
        When(every_steps=50, every_minutes=2.5),
        Keep(last=4, every_steps=1000),
        ("optimizer.lr", "model.d2t", "device"),
    )
    assert rest == ["--lr", "1e-3", "--checkpoint-freq", "0.5", "--target-layer-ids", "1", "2"]


def test_without_flags_every_ten_minutes() -> None:
    assert take(["--checkpoint", "x"], {}) == (
        Settings(When(None, 10.0), Keep(3)),
        ["--checkpoint", "x"],
    )


def test_variables_stand_behind_flags() -> None:
    environment = {
        "SPECULATORS_PATCHES_CHECKPOINT_EVERY_STEPS": "7",
        "SPECULATORS_PATCHES_CHECKPOINT_EVERY_MINUTES": "0",
        "SPECULATORS_PATCHES_RESUME_DESPITE": "device",
        "SPECULATORS_PATCHES_CHECKPOINT_KEEP": "",
    }
    assert take([], environment)[0] == Settings(When(7, None), Keep(3), ("device",))
    flags = ["--checkpoint-every-steps", "9", "--resume-despite", "model.d2t"]
    assert take(flags, environment)[0] == Settings(When(9, None), Keep(3), ("model.d2t",))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--checkpoint-every-steps", "often"], "--checkpoint-every-steps 'often' is not a whole"),
        (["--checkpoint-every-steps", "0"], "--checkpoint-every-steps must be at least 1, got 0"),
        (["--checkpoint-every-minutes", "-1"], "--checkpoint-every-minutes must be above 0"),
        (["--checkpoint-every-minutes", "nan"], "--checkpoint-every-minutes must be above 0"),
        (["--checkpoint-keep", "0"], "--checkpoint-keep must be at least 1, got 0"),
        (["--checkpoint-keep-every", "2.5"], "--checkpoint-keep-every '2.5' is not a whole"),
        (["--checkpoint-every-steps"], "--checkpoint-every-steps: expected one argument"),
    ],
)
def test_a_senseless_value_is_one_sentence(argv: list[str], says: str) -> None:
    with pytest.raises(BadSetting) as refusal:
        take(argv, {})
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_senseless_variable_is_named() -> None:
    with pytest.raises(BadSetting, match="SPECULATORS_PATCHES_CHECKPOINT_KEEP 'x' is not a whole"):
        take([], {"SPECULATORS_PATCHES_CHECKPOINT_KEEP": "x"})
