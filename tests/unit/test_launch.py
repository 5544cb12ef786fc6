"""Launch files: complete, runnable by their shells, and refused where the launcher can't do it.

The launchers' own parsers read them in tests/launch (nightly).
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from recipes.config import ConfigError, resolve
from recipes.spread import launch, refusals
from recipes.spread.launch.job import MARK, PROJECT, Job
from tests.unit.test_plan import cli

SPREAD = ("hosts=a,b", "host_gpus=8", "trainers=8", "producers=8")


def write(
    launcher: str, folder: Path, *settings: str, preset: str = "h100", run: str = "/shared/run"
) -> dict[str, str]:
    recipe, _ = resolve(preset, None, list(settings))
    paths = launch.write(launcher, Job(recipe, preset, Path(run), folder))
    return {path.name: path.read_text() for path in paths}


def is_shell(path: Path) -> bool:
    return subprocess.run(["bash", "-n", str(path)]).returncode == 0


@pytest.mark.parametrize("launcher", sorted(launch.LAUNCHERS))
def test_every_file_says_where_it_is_from_and_what_it_is(launcher: str, tmp_path: Path) -> None:
    found = write(launcher, tmp_path, "trainers=2", "train_endpoint=http://10.0.0.1:8100")
    for name, text in found.items():
        assert MARK in text[:1000]
        if name.endswith((".sh", ".sbatch")):
            assert is_shell(tmp_path / name)
        if name.endswith(".sh"):
            assert os.access(tmp_path / name, os.X_OK)
    settings = json.loads(found["settings.json"])["settings"]
    assert settings["trainers"] == 2
    assert "hosts" not in settings
    # What the machines will read is what was planned.
    recipe, _ = resolve("h100", tmp_path / "settings.json", [])
    assert recipe.trainers == 2


def test_torchrun_tells_the_trainers_what_the_recipe_does(tmp_path: Path) -> None:
    settings = ("trainers=2", "train_endpoint=http://10.0.0.1:8100", "serve_temperature=0.3")
    text = write("torchrun", tmp_path, *settings)["torchrun.sh"]
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text
    assert "export SPECULATORS_PATCHES_SERVE_TEMPERATURE=0.3" in text


def test_torchrun_reads_hidden_states_where_the_producers_put_them(tmp_path: Path) -> None:
    one = ("trainers=2", "train_endpoint=http://10.0.0.1:8100")
    files = write("torchrun", tmp_path / "files", *one)["torchrun.sh"]
    assert "mooncake" not in files
    store = ("transfer=mooncake", "mooncake_master=10.0.0.9:50051")
    text = write("torchrun", tmp_path / "store", *one, *store)["torchrun.sh"]
    words = text.split()
    assert words[words.index("--hidden-states-backend") + 1] == "mooncake"
    assert words[words.index("--mooncake-master") + 1] == "10.0.0.9:50051"


def test_slurm_asks_for_what_the_plan_places(tmp_path: Path) -> None:
    text = write("slurm", tmp_path, *SPREAD)["job.sbatch"]
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --ntasks-per-node=1",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@300",
    ):
        assert line in text.splitlines()
    assert "run_dir=${RUN_DIR:-/shared/run}" in text


def test_skypilot_asks_for_what_the_plan_places(tmp_path: Path) -> None:
    found = write("skypilot", tmp_path, *SPREAD)
    task = yaml.safe_load(found["task.yaml"])
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["volumes"] == {"/runs": yaml.safe_load(found["volume.yaml"])["name"]}
    assert task["file_mounts"] == {"~/launch": str(tmp_path)}
    assert task["secrets"] == {"HF_TOKEN": ""}  # given when it is launched, or not at all
    assert "/runs/run" in task["run"]


def test_compose_reserves_the_gpus_and_mounts_the_run(tmp_path: Path) -> None:
    found = write("docker-compose", tmp_path, "trainers=2", "producers=2")
    service = yaml.safe_load(found["compose.yaml"])["services"]["run"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 4, "capabilities": ["gpu"]}
    assert "${RUNS:-/shared}:/runs" in service["volumes"]
    assert service["restart"] == "unless-stopped"
    assert Path(service["build"]["dockerfile"]) == tmp_path / "Dockerfile"
    for line in found["Dockerfile"].splitlines():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (PROJECT / source).exists()


def test_machines_install_what_mooncake_needs(tmp_path: Path) -> None:
    store = ("trainers=2", "transfer=mooncake")
    image = write("docker-compose", tmp_path / "c", *store)["Dockerfile"]
    assert "apt-get install -y --no-install-recommends libibverbs1 librdmacm1" in image
    assert "pip install --no-cache-dir '.[gpu,mooncake]'" in image
    setup = yaml.safe_load(write("skypilot", tmp_path / "s", *store)["task.yaml"])["setup"]
    assert "apt-get install -y libibverbs1 librdmacm1" in setup
    assert "pip install --editable '.[gpu,mooncake]'" in setup
    (tmp_path / "setup.sh").write_text(setup)
    assert is_shell(tmp_path / "setup.sh")
    for launcher in ("docker-compose", "skypilot"):
        found = write(launcher, tmp_path / launcher, "trainers=2")
        assert "ibverbs" not in "".join(found.values())
        assert "[gpu]" in "".join(found.values())


def test_folders_with_a_space_or_a_dollar_stay_one_word(tmp_path: Path) -> None:
    folder, run = tmp_path / "my jobs", "/sha red/my $run"
    task = yaml.safe_load(write("skypilot", folder, run=run)["task.yaml"])
    assert task["file_mounts"] == {"~/launch": str(folder)}
    last = task["run"].strip().splitlines()[-1]
    assert shlex.split(last)[-1] == "/runs/my $run"
    (folder / "task.yaml").unlink()
    service = yaml.safe_load(
        write("docker-compose", tmp_path / "my files", run=run)["compose.yaml"]
    )["services"]["run"]
    assert "${RUNS:-/sha red}:/runs" in service["volumes"]
    assert f"{tmp_path / 'my files'}:/launch:ro" in service["volumes"]
    # Compose makes one $ of two.
    words = shlex.split(service["command"][-1].replace("$$", "$"))
    assert words[words.index("--run-dir") + 1] == "/runs/my $run"


def settings_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "settings.json").read_text())["settings"]
    return found


def test_what_settings_name_on_this_machine_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my body").mkdir()
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "my body")
    settings = ("body=my body", "draft_start=linked", "prompts=prompts.jsonl",
                "bench_mtp=/runs/models/mtp")  # fmt: skip
    mounts = yaml.safe_load(write("skypilot", tmp_path / "out", *settings)["task.yaml"])
    assert mounts["file_mounts"] == {
        "~/launch": str(tmp_path / "out"),
        str(tmp_path / "my body"): str(tmp_path / "my body"),
        str(tmp_path / "linked"): str(tmp_path / "my body"),
        str(tmp_path / "prompts.jsonl"): str(tmp_path / "prompts.jsonl"),
    }
    # What the machines read are those paths, wherever they read them.
    found = settings_of(tmp_path / "out")
    assert found["body"] == str(tmp_path / "my body")
    assert found["prompts"] == str(tmp_path / "prompts.jsonl")
    assert found["bench_mtp"] == "/runs/models/mtp"
    assert found["bench_dflash"] == "z-lab/gemma-4-26B-A4B-it-DFlash"


def test_the_trainers_script_names_its_body_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes into the checkout, wherever it was planned."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "body").mkdir()
    settings = ("body=body", "trainers=2", "train_endpoint=http://10.0.0.1:8100")
    text = write("torchrun", tmp_path / "out", *settings)["torchrun.sh"]
    assert f" {tmp_path / 'body'}\n" in text


def test_what_rented_machines_would_lack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^body=/models/body is not on this machine, [^\n]+$"):
        write("skypilot", tmp_path / "out", "body=/models/body")
    assert not (tmp_path / "out").exists()
    write("slurm", tmp_path / "slurm", "body=/models/body")  # its nodes may have it


@pytest.mark.parametrize("launcher", ["skypilot", "docker-compose"])
def test_a_folder_of_links_as_in_the_hubs_cache_is_refused(tmp_path: Path, launcher: str) -> None:
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    (blobs / "1").touch()
    (snapshot / "config.json").touch()
    (snapshot / "same.json").symlink_to("config.json")
    write(launcher, tmp_path / "whole", f"body={snapshot}")
    (snapshot / "model.safetensors").symlink_to("../blobs/1")
    with pytest.raises(ConfigError, match=r"holds links to files outside of it.*cp -rL\.$"):
        write(launcher, tmp_path / "out", f"body={snapshot}")


def test_what_settings_name_on_this_machine_is_in_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my body").mkdir()
    (tmp_path / "prompts.jsonl").touch()
    settings = (f"body={tmp_path / 'my body'}", "draft_start=/models/eagle3",
                "prompts=prompts.jsonl")  # fmt: skip
    text = write("docker-compose", tmp_path / "out", *settings)["compose.yaml"]
    volumes = yaml.safe_load(text)["services"]["run"]["volumes"]
    named = [tmp_path / "my body", "/models/eagle3", tmp_path / "prompts.jsonl"]
    assert [one for one in volumes if isinstance(one, dict)] == [
        {
            "type": "bind", "source": str(path), "target": str(path), "read_only": True,
        }
        for path in named
    ]  # fmt: skip
    assert settings_of(tmp_path / "out")["prompts"] == str(tmp_path / "prompts.jsonl")
    plain = write("docker-compose", tmp_path / "plain")["compose.yaml"]
    assert len(yaml.safe_load(plain)["services"]["run"]["volumes"]) == 3  # hub ids need none


@pytest.mark.parametrize(
    ("launcher", "settings", "preset", "part"),
    [
        ("kubernetes", (), "h100", "launchers are skypilot, slurm, torchrun, docker-compose"),
        ("docker-compose", SPREAD, "h100", "starts one machine's services"),
        ("skypilot", (), "dgx-spark", "none is a dgx-spark"),
        ("torchrun", (), "h100", "trainers=1 needs no torchrun"),
        ("torchrun", ("trainers=2",), "h100", "starts trainers alone"),
        # Nobody would start what `join` serves at http://b:8100.
        ("torchrun", SPREAD, "h100", "--set train_endpoint=URL"),
        (
            "torchrun",
            ("trainers=2", "train_endpoint=http://10.0.0.1:8100", "transfer=mooncake"),
            "h100",
            "--set mooncake_master=HOST:PORT",
        ),
        ("slurm", (), "miniature", "the miniature needs no launcher"),
    ],
)
def test_what_a_launcher_cannot_do_is_refused(
    launcher: str, settings: tuple[str, ...], preset: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as refused:
        write(launcher, tmp_path / "out", *settings, preset=preset)
    assert part in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    write("slurm", tmp_path)
    write("slurm", tmp_path, *SPREAD)  # its own: written again
    (tmp_path / "machine.sh").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"machine\.sh was not written by"):
        write("slurm", tmp_path)
    assert (tmp_path / "machine.sh").read_text() == "mine\n"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a folder"):
        write("slurm", tmp_path / "file")


def machine(tmp_path: Path, number: str, *settings: str, count: int = 1) -> list[list[str]]:
    """The `count` commands that machine.sh becomes or starts, with a stand-in for Python."""
    write("slurm", tmp_path / "launch", *settings)
    project = tmp_path / "project"
    (project / ".venv" / "bin").mkdir(parents=True)
    said = tmp_path / "said"
    (project / ".venv" / "bin" / "activate").write_text(f"PATH={project}/.venv/bin:$PATH\n")
    python = project / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {said}\n')
    python.chmod(0o755)
    subprocess.run(
        ["bash", str(tmp_path / "launch" / "machine.sh"), number, "10.0.0.1,10.0.0.2", "/shared/r"],
        check=True,
        env={**os.environ, "PROJECT": str(project)},
    )
    until = time.monotonic() + 20  # one of them runs in the background
    while len(said.read_text().splitlines()) < count and time.monotonic() < until:
        time.sleep(0.05)
    return sorted(line.split() for line in said.read_text().splitlines())


def test_the_first_machine_leads_and_the_others_join(tmp_path: Path) -> None:
    (leads,) = machine(tmp_path / "0", "0", *SPREAD)
    assert leads[:5] == ["-m", "recipes.gemma4_abliterated", "all", "--until", "train"]
    (joins,) = machine(tmp_path / "1", "1", *SPREAD)
    assert joins[:5] == ["-m", "recipes.gemma4_abliterated", "join", "--number", "1"]
    for words in (leads, joins):
        assert words[words.index("--set") + 1] == "hosts=10.0.0.1,10.0.0.2"
        assert words[words.index("--run-dir") + 1] == "/shared/r"


def test_a_first_machine_with_producers_serves_them_too(tmp_path: Path) -> None:
    both = ("hosts=a,b", "host_gpus=1", "trainers=2", "producers=2")
    commands = [words[2:5] for words in machine(tmp_path, "0", *both, count=2)]
    assert commands == [["all", "--until", "train"], ["join", "--number", "0"]]


@pytest.mark.parametrize(
    "settings",
    [
        SPREAD,
        ("hosts=a,b", "host_gpus=8", "trainers=4", "producers=12"),
        ("hosts=a,b", "host_gpus=8", "trainers=16", "producers=16"),
        ("hosts=a,b", "train_vllm_share=0.95"),
        ("hosts=a,b", "fsdp=true", "trainers=2", "transfer=mooncake"),
    ],
)
def test_the_next_step_that_is_printed_passes_and_trains_nothing_again(
    settings: tuple[str, ...], tmp_path: Path
) -> None:
    text = write("slurm", tmp_path, *settings)["machine.sh"]
    (line,) = [one for one in text.splitlines() if "all --run-dir RUN_DIR" in one]
    words = line.split()
    more = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    before, _ = resolve("h100", None, list(settings))
    then, _ = resolve("h100", None, more, saved=before.to_json())
    assert not refusals.check(then, "h100", tmp_path).is_spread
    # What a training is made from (recipes/stages.py) is the same.
    assert (then.trainers, then.fsdp) == (before.trainers, before.fsdp)


def test_one_machine_runs_everything(tmp_path: Path) -> None:
    (words,) = machine(tmp_path, "0", "trainers=2")
    assert words[2:5] == ["all", "--until", "serve"]


def test_the_command_line_writes_them(tmp_path: Path) -> None:
    out = tmp_path / "jobs"
    done = cli("plan", "--preset", "h100", "--set", "trainers=2", "--launcher", "slurm", "--out",
               str(out), "--run-dir", str(tmp_path / "run"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"written: {out / 'job.sbatch'}" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jobs"]
    alone = cli("plan", "--preset", "h100", "--launcher", "slurm")
    assert (alone.returncode, alone.stderr.count("\n")) == (2, 1)
    assert "--launcher NAME and --out FOLDER go together" in alone.stderr
    until = cli("all", "--until", "lunch")
    assert until.returncode == 2
    assert "--until lunch is none of regenerate" in until.stderr
