"""`checkpoints list | verify | prune | export` on a real store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from speculators_patches.checkpointing import cli, names
from tests.unit.checkpoint_run import at, build, checkpoints


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    with checkpoints(tmp_path / "train" / names.STORE, build()) as saves:
        for step in (10, 20, 30):
            assert saves.save(at(step), "best" if step == 10 else "epoch", commit_s=60)
    return tmp_path


def flip(run_dir: Path, name: str) -> None:
    path = run_dir / "train" / names.STORE / name / "rank-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_list(run_dir: Path) -> None:
    code, text = run("list", run_dir, "--json")
    rows = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [(row["step"], row["tags"], row["state"]) for row in rows] == [
        (30, ["epoch"], "committed"),
        (20, ["epoch"], "committed"),
        (10, ["best"], "committed"),
    ]
    assert "ckpt-000003-step-00000030" in run("list", run_dir / "train")[1].replace("\n", "")


def test_verify_names_the_altered_file(run_dir: Path) -> None:
    assert run("verify", run_dir) == (
        0,
        "".join(f"ckpt-{i:06d}-step-{i * 10:08d}: whole\n" for i in (3, 2, 1))
        + "3 of 3 checkpoints are whole\n",
    )
    flip(run_dir, "ckpt-000002-step-00000020")
    code, text = run("verify", run_dir)
    assert code == 1
    assert "ckpt-000002-step-00000020: rank-00000.safetensors is altered" in text
    assert "2 of 3 checkpoints are whole" in text


def test_prune(run_dir: Path) -> None:
    assert run("prune", run_dir, "--keep", 1, "--dry-run") == (
        0,
        "would remove ckpt-000002-step-00000020\n",
    )
    assert run("prune", run_dir, "--keep", 1) == (0, "removed ckpt-000002-step-00000020\n")
    flip(run_dir, "ckpt-000003-step-00000030")
    code, text = run("prune", run_dir, "--keep", 1, "--drop-best")
    assert code == 0
    assert "nothing is removed" in text


def test_prune_is_refused_while_training_writes(run_dir: Path) -> None:
    with checkpoints(run_dir / "train" / names.STORE, build()):
        code, text = run("prune", run_dir)
    assert code == 1
    assert text.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("list", "{}/nowhere"), "is not a folder"),
        (("verify", "{}/empty"), "holds no checkpoints"),
        (("prune", "{}", "--keep", "0"), "--checkpoint-keep must be at least 1"),
        (("export", "{}", "{}/empty"), "already exists"),
        (("export", "{}", "{}/new", "--checkpoint", "x"), "holds no checkpoint 'x'"),
    ],
)
def test_bad_input_is_one_sentence(run_dir: Path, words: tuple[str, ...], sentence: str) -> None:
    (run_dir / "empty").mkdir()
    code, text = run(*(word.format(run_dir) for word in words))
    assert code == 1
    assert text.startswith("error: ")
    assert sentence in text
    assert text.count("\n") == 1


def test_choosing(run_dir: Path) -> None:
    root = run_dir / "train" / names.STORE
    assert cli.choose(root, "newest").step == 30
    assert cli.choose(root, "best").step == 10
    assert cli.choose(root, "ckpt-000002-step-00000020").step == 20


def test_two_stores_must_be_told_apart(run_dir: Path) -> None:
    (run_dir / "other" / names.STORE).mkdir(parents=True)
    code, text = run("list", run_dir)
    assert code == 1
    assert "holds 2 sets of checkpoints; name one" in text
