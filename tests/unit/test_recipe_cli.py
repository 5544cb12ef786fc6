"""The recipe's command line: which settings hold, and one sentence for what a user gets wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recipes import setup_venv
from recipes.config import ConfigError
from recipes.gemma4_abliterated import _clear_errors, _resolve, app
from recipes.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run folder of preset dgx-spark with two settings changed."""
    given = [
        "samples=2000",
        'vllm_extra=["--override-generation-config", "{\\"a\\": 1, \\"b\\": 2}"]',
    ]
    recipe, origin, run, preset = _resolve(tmp_path / "run", "dgx-spark", None, given)
    run.write_config(preset, recipe.to_json(), origin)
    return run.root


def test_a_run_folder_s_settings_hold_until_they_are_changed(begun: Path, tmp_path: Path) -> None:
    recipe, origin, _, preset = _resolve(begun, None, None, ["epochs=2"])
    assert (recipe.samples, recipe.epochs, preset) == (2000, 2, "dgx-spark")
    assert origin["samples"] == origin["epochs"] == "--set"
    assert recipe.vllm_extra[1] == '{"a": 1, "b": 2}'  # not taken apart at its comma

    file = tmp_path / "more.toml"
    file.write_text("samples = 777\n")
    recipe, origin, *_ = _resolve(begun, "dgx-spark", file, [])
    assert (recipe.samples, origin["samples"]) == (777, str(file))


def test_an_addition_changes_a_run_and_stays_in_it(begun: Path) -> None:
    recipe, origin, run, preset = _resolve(begun, "dgx-spark+ttt4", None, [])
    assert (recipe.samples, recipe.ttt_steps, preset) == (2000, 4, "dgx-spark")
    assert origin["ttt_steps"] == "preset ttt4"
    run.write_config(preset, recipe.to_json(), origin)
    assert _resolve(begun, None, None, [])[0].ttt_steps == 4


def test_another_preset_does_not_take_a_run_over(begun: Path) -> None:
    with pytest.raises(ConfigError, match="holds a run of preset dgx-spark; give another --run-di"):
        _resolve(begun, "h100", None, [])


@pytest.mark.parametrize("text", ["{", "{}", '{"preset": "h100", "settings": 3, "origin": {}}'])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    done = CliRunner().invoke(app, ["plan", "--run-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert "does not hold the settings of a run" in done.stderr


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, ["regenerate", "--run-dir", str(tmp_path / "file" / "run")])
    assert done.exit_code == 1
    assert done.stderr.startswith("error: Not a directory: ")


def test_two_calls_do_not_share_a_run_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).locked():
        done = CliRunner().invoke(app, ["regenerate", "--run-dir", str(tmp_path)])
    assert done.exit_code == 2
    assert "another process is running stages in" in done.stderr


def test_nohup_is_respected_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _clear_errors():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not before
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGHUP, kept)


def test_the_miniature_says_at_once_that_vllm_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[1:] = ['all', '--run-dir', sys.argv[1]]\n"
        "from recipes.vllm import spec\nspec.installed = lambda: None\n"
        "from recipes import gemma4_abliterated\ngemma4_abliterated.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        timeout=120, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert "error: vLLM is not installed for" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "bodies").exists()


def test_the_miniature_s_plan_shows_every_step(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plan", "--run-dir", str(tmp_path)])
    assert done.exit_code == 0, done.stderr
    text = done.stdout[done.stdout.index("\nbodies") :]
    steps = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert steps == [
        "bodies", "vanilla/regenerate", "vanilla/prepare", "vanilla/train", "regenerate",
        "prepare", "train", "calibrate", "bench", "serve",
    ]  # fmt: skip
    assert f"--log-dir {tmp_path}/train/logs" in text
    assert not list(tmp_path.iterdir())


def test_every_command_is_recorded(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.record_server("body", ["vllm", "serve"])
    run.record_command("train", ["python"], 0, 1.5)
    rows = [json.loads(line) for line in (tmp_path / "commands.jsonl").read_text().splitlines()]
    assert rows[0]["server"] == "body"
    assert (rows[1]["stage"], rows[1]["exit_code"], rows[1]["seconds"]) == ("train", 0, 1.5)


def test_set_up_never_removes_what_it_did_not_make(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    mark = precious / ".speculators-patches"
    setup_venv.clear(precious, mark)  # empty: nothing to lose
    precious.mkdir(exist_ok=True)
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(SystemExit, match="was not made by this script"):
        setup_venv.clear(precious, mark)
    assert (precious / "thesis.tex").exists()
    mark.write_text("begun")
    setup_venv.clear(precious, mark)
    assert not precious.exists()


def test_plan_refuses_a_store_without_room_also_on_one_machine(tmp_path: Path) -> None:
    words = ["plan", "--preset", "h100", "--run-dir", str(tmp_path / "run")]
    words += ["--set", "transfer=mooncake", "--set", "mooncake_segment_gib=0.1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "holds fewer than 2 rows of hidden states" in done.output
