"""The copy of a drafter whose head is divided: exact, once, whole or not there, or refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arms import Arm
from benchmarks.bench_setup import Setup
from benchmarks.schema import ArmSpec
from recipes.config import ConfigError, resolve
from recipes.scaled_drafter import HEAD, RECORD, HeadError, recorded, scale

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]


def drafter(folder: Path, dtype: Any = None, size: int = 8, **config: Any) -> Path:
    """A folder as the trainer leaves it; `config` with a None takes a key out."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    dtype = dtype or torch.bfloat16
    weights = {HEAD: torch.randn(size, 4), "norm.weight": torch.ones(4), "d2t": torch.arange(size)}
    weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt", "made": "by"})
    told = {"speculators_model_type": "eagle3", "transformer_layer_config": {}, **config}
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "optimizer_state_dict.pt").write_bytes(b"large")
    return folder


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def weights_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(str(folder / "model.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("by", [0.8, 0.5, 1.1])
def test_every_row_of_the_head_is_divided_and_rounded_once(
    dtype: str, by: float, tmp_path: Path
) -> None:
    plain = drafter(tmp_path / "plain", getattr(torch, dtype))
    before = {f.name: f.read_bytes() for f in plain.iterdir()}
    scale(plain, tmp_path / "cooled", by)
    found, given = weights_of(tmp_path / "cooled"), weights_of(plain)
    exact = given[HEAD].double() / by
    step = torch.finfo(getattr(torch, dtype)).eps
    assert found[HEAD].dtype == given[HEAD].dtype
    assert ((found[HEAD].double() - exact).abs() <= exact.abs() * step / 2).all()
    for name in ("norm.weight", "d2t"):
        assert torch.equal(found[name], given[name])
    assert {f.name: f.read_bytes() for f in plain.iterdir()} == before
    assert not (tmp_path / "cooled" / "optimizer_state_dict.pt").exists()
    assert (recorded(plain), recorded(tmp_path / "cooled")) == (1.0, by)


def test_the_same_copy_is_not_made_twice_and_another_replaces_it(tmp_path: Path) -> None:
    plain, cooled = drafter(tmp_path / "plain"), tmp_path / "cooled"
    scale(plain, cooled, 0.8)
    made = (cooled / "model.safetensors").stat().st_mtime_ns
    first = weights_of(cooled)[HEAD]
    scale(plain, cooled, 0.8)
    assert (cooled / "model.safetensors").stat().st_mtime_ns == made
    scale(plain, cooled, 0.9)
    assert recorded(cooled) == 0.9
    scale(plain, cooled, 0.8)
    assert torch.equal(weights_of(cooled)[HEAD], first)
    (cooled / "model.safetensors").write_bytes(b"torn")  # no longer what was written
    assert recorded(cooled) == 1.0
    scale(plain, cooled, 0.8)
    assert torch.equal(weights_of(cooled)[HEAD], first)


def test_a_copy_is_not_scaled_again_but_what_was_trained_from_it_is(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    plain, cooled, again = drafter(tmp_path / "plain"), tmp_path / "cooled", tmp_path / "again"
    scale(plain, cooled, 0.8)
    with pytest.raises(HeadError, match=r"divided by 0.8 already"):
        scale(cooled, again, 0.8)
    assert not again.exists()
    # Trained on, with the head frozen: the words were inherited, the weights are others.
    trained = {**weights_of(cooled), "norm.weight": torch.zeros(4, dtype=torch.bfloat16)}
    save_file(trained, cooled / "model.safetensors")
    assert recorded(cooled) == 1.0
    scale(cooled, again, 0.5)
    assert torch.equal(weights_of(again)[HEAD], trained[HEAD] * 2)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"speculators_model_type": "dspark"}, "Markov bias"),
        ({"transformer_layer_config": {"final_logit_softcapping": 30.0}}, "caps its logits"),
        ({"transformer_layer_config": {"tie_word_embeddings": True}}, "its embedding as its head"),
        ({"tie_word_embeddings": True}, "its embedding as its head"),
    ],
)
def test_heads_that_dividing_would_not_divide_are_refused(
    config: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(HeadError, match=says) as told:
        scale(drafter(tmp_path / "plain", **config), tmp_path / "cooled", 0.8)
    assert "\n" not in str(told.value)
    assert [f.name for f in tmp_path.iterdir()] == ["plain"]


def test_quantised_missing_and_overflowing_heads_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(HeadError, match="it is quantised"):
        scale(drafter(tmp_path / "a", torch.float8_e4m3fn), tmp_path / "x", 0.8)
    headless = drafter(tmp_path / "b")
    save_file({"norm.weight": torch.ones(4)}, headless / "model.safetensors")
    with pytest.raises(HeadError, match="drafts through the body's"):
        scale(headless, tmp_path / "x", 0.8)
    large = drafter(tmp_path / "c", torch.float16)
    save_file({HEAD: torch.full((2, 2), 60_000.0).half()}, large / "model.safetensors")
    with pytest.raises(HeadError, match="does not fit into"):
        scale(large, tmp_path / "x", 0.5)
    for wrong in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(HeadError, match=r"between 0.1 and 10"):
            scale(drafter(tmp_path / f"d{wrong}"), tmp_path / "x", wrong)
    assert not (tmp_path / "x").exists()


def test_the_bench_writes_down_which_heads_were_divided(tmp_path: Path) -> None:
    plain, cooled = drafter(tmp_path / "plain"), tmp_path / "cooled"
    scale(plain, cooled, 0.8)

    def setup(*arms: Arm) -> Setup:
        return Setup("body", arms, ())

    def arm(name: str, model: Any) -> Arm:
        config = {"method": "eagle3", "model": str(model), "num_speculative_tokens": 4}
        return Arm(ArmSpec(name, 4, config))

    arms = arm("A", plain), arm("B", cooled), arm("C", "hub/id"), Arm(ArmSpec("none", 0))
    assert setup(*arms).settings()["head_temperatures"] == {"B": 0.8}
    # Of benches without one, the settings are what they always were.
    assert "head_temperatures" not in setup(arms[0], *arms[2:]).settings()


def test_an_old_copy_is_not_taken_apart_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, cooled = drafter(tmp_path / "plain"), tmp_path / "cooled"
    scale(plain, cooled, 0.9)

    def half(folder: Path, **_: Any) -> None:
        for file in folder.glob("*.safetensors"):
            file.unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(KeyboardInterrupt):
        scale(plain, cooled, 0.8)
    monkeypatch.undo()
    assert recorded(cooled) == 0.8
    scale(plain, cooled, 0.9)
    assert recorded(cooled) == 0.9
    assert {f.name for f in tmp_path.iterdir()} == {"plain", "cooled"}


LOOP = """
import sys
from pathlib import Path
from recipes.scaled_drafter import scale
plain, cooled = map(Path, sys.argv[1:])
scale(plain, cooled, 0.9)  # imports torch, which takes longer than any wait below
print("go", flush=True)
while True:
    for by in (0.8, 0.9):
        scale(plain, cooled, by)
"""


def test_killed_at_any_moment_there_is_a_whole_copy_or_none(tmp_path: Path) -> None:
    plain, cooled = drafter(tmp_path / "plain", size=20_000), tmp_path / "cooled"
    wanted = {}
    for by in (0.8, 0.9):
        scale(plain, tmp_path / f"at-{by}", by)
        wanted[by] = weights_of(tmp_path / f"at-{by}")
    left = set()
    for kill in range(16):
        child = subprocess.Popen(
            [sys.executable, "-c", LOOP, str(plain), str(cooled)], cwd=ROOT,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.01 * kill)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        left |= {f.name for f in tmp_path.iterdir()} - {"plain", "cooled"}
        if cooled.exists():  # as its record's digest says, then
            assert same(weights_of(cooled), wanted[recorded(cooled)])
        scale(plain, cooled, 0.8)
        assert same(weights_of(cooled), wanted[recorded(cooled)])
        assert recorded(cooled) == 0.8
    assert ".cooled.staging" in left, "no kill came while a copy was being made"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["head_temperature=warm"], "not a valid float"),
        (["head_temperature=0"], "between 0.1 and 10"),
        (["head_temperature=auto", "drafter_kind=peagle", "draft_start=", "draft_vocab_size=9"],
         "eagle3 only"),
        (["head_temperature=0.8", "drafter_kind=dspark", "draft_start=", "draft_vocab_size=9"],
         "Markov"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_had_are_refused_before_training(
    settings: list[str], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        resolve("h100", None, settings)
    with pytest.raises(ConfigError, match="pruned"):
        resolve("miniature+dflash", None, ["head_temperature=0.8"])


def test_settings_that_can() -> None:
    kinds = ["draft_start=", "draft_vocab_size=9"]
    for kind in ("peagle", "dflash"):
        found, _ = resolve("h100", None, [*kinds, f"drafter_kind={kind}", "head_temperature=0.8"])
        assert found.head_temperature == 0.8
    assert resolve("h100", None, ["head_temperature=auto"])[0].head_temperature == "auto"
    assert resolve("h100")[0].head_temperature == 1
    assert RECORD == "head_temperature"
