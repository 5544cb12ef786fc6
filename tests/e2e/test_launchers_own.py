"""The launch files before the launchers' own parsers, and a SLURM job that is really requeued.

Skipped with the reason where a launcher is not installed: SkyPilot comes with `make launchers`
(30 s and 0.5 GB in an environment of its own, so not in `make test`), the others from a
distribution (Debian: docker-compose, slurmctld, slurmd, slurm-client).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from recipes.config import resolve
from recipes.spread import launch
from recipes.spread.launch.job import Job
from speculators_patches.checkpointing import names, reading
from tests.e2e import spread_run
from tests.e2e.one_node_slurm import Cluster, why_not
from tests.e2e.test_launch_torchrun import ON_A_CPU, script, start, trained

pytestmark = [pytest.mark.e2e, pytest.mark.nightly]
SKYPILOT = os.environ.get("SKYPILOT_PYTHON") or str(spread_run.ROOT / ".launchers/bin/python")
ONE = ("trainers=2", "producers=2")
SPREAD = ("hosts=a,b", "host_gpus=8", "trainers=8", "producers=8")


def write(launcher: str, folder: Path, *settings: str) -> Path:
    recipe, _ = resolve("h100", None, list(settings))
    launch.write(launcher, Job(recipe, "h100", Path("/shared/run"), folder))
    return folder


@pytest.mark.parametrize("settings", [ONE, SPREAD], ids=["one machine", "two machines"])
def test_skypilot_reads_its_task_and_its_volume(tmp_path: Path, settings: tuple[str, ...]) -> None:
    if not Path(SKYPILOT).exists():
        pytest.skip("SkyPilot is not installed; `make launchers` does it")
    body = tmp_path / "my body"
    body.mkdir()
    (body / "config.json").touch()
    folder = write("skypilot", tmp_path / "launch", *settings, f"body={body}")
    code = """if True:
        import sys, yaml, jsonschema, sky
        from sky.utils import schemas
        task = sky.Task.from_yaml(sys.argv[1] + "/task.yaml")
        task.validate_name()
        task.expand_and_validate_workdir()
        task.expand_and_validate_file_mounts()
        (resources,) = task.resources
        jsonschema.validate(
            yaml.safe_load(open(sys.argv[1] + "/volume.yaml")), schemas.get_volume_schema())
        task.update_secrets([("HF_TOKEN", "given at the launch")])
        print(sorted(task.file_mounts.items()))
        print(task.num_nodes, resources.accelerators, resources.use_spot, sorted(task.volumes))
    """
    done = subprocess.run(
        [SKYPILOT, "-c", code, str(folder)],
        capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    machines, gpus = (1, 4) if settings is ONE else (2, 8)
    assert done.stdout.split("\n")[-2] == f"{machines} {{'H100': {gpus}}} True ['/runs']"
    mounts = [(str(body), str(body)), ("~/launch", str(folder))]
    assert done.stdout.split("\n")[-3] == str(mounts)
    # The parser refuses what is not its own, and what is not there to be uploaded: it did look.
    (body / "config.json").unlink()
    body.rmdir()
    lost = subprocess.run([SKYPILOT, "-c", code, str(folder)], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})  # fmt: skip
    assert f"'{body}' does not exist" in lost.stderr
    body.mkdir()
    text = (folder / "task.yaml").read_text()
    (folder / "task.yaml").write_text(text.replace("num_nodes:", "number_of_nodes:"))
    wrong = subprocess.run([SKYPILOT, "-c", code, str(folder)], capture_output=True, text=True,
                           env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})  # fmt: skip
    assert wrong.returncode != 0


def test_docker_compose_reads_its_file(tmp_path: Path) -> None:
    if shutil.which("docker-compose"):
        program = ["docker-compose"]
    elif shutil.which("docker"):
        program = ["docker", "compose"]
    else:
        pytest.skip("neither docker nor docker-compose is installed")
    body = tmp_path / "my body"
    body.mkdir()
    folder = write("docker-compose", tmp_path / "launch", *ONE, f"body={body}")

    def config() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*program, "--file", str(folder / "compose.yaml"), "config", "--quiet"],
            capture_output=True, text=True,
        )  # fmt: skip

    assert config().returncode == 0, config().stderr
    text = (folder / "compose.yaml").read_text()
    (folder / "compose.yaml").write_text(text.replace("restart:", "restarts:"))
    assert config().returncode != 0


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"no SLURM here: {reason}")
    with Cluster(tmp_path / "slurm") as cluster:
        yield cluster


def test_slurm_takes_the_job(slurm: Cluster, tmp_path: Path) -> None:
    folder = write("slurm", tmp_path / "launch", *ONE)
    done = slurm.run("sbatch", "--test-only", str(folder / "job.sbatch"))
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr
    # It does look: two nodes there are not.
    spread = write("slurm", tmp_path / "spread", *SPREAD)
    assert slurm.run("sbatch", "--test-only", str(spread / "job.sbatch")).returncode != 0


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the ranks are two CPU processes")
def test_a_job_whose_time_is_up_is_requeued_and_goes_on(slurm: Cluster, tmp_path: Path) -> None:
    """What --signal=B:TERM sends comes by hand; saving, requeueing and going on are real."""
    work = spread_run.data(tmp_path)
    path, checkpoints = script(work, tmp_path / "requeued")
    folder = path.parent
    recipe, _ = resolve("h100", None, [*spread_run.SETTINGS, *ON_A_CPU])
    launch.write("slurm", Job(recipe, "h100", tmp_path / "requeued" / "run", folder))
    # The machine trains, and nothing else: what `all` does before needs a vLLM.
    (folder / "machine.sh").write_text(f"exec bash {path} 0\n")
    log = tmp_path / "job.log"
    sent = slurm.run(
        "sbatch", "--parsable", f"--output={log}", str(folder / "job.sbatch"),
        PYTHON=sys.executable, PYTHONPATH=str(spread_run.ROOT), OMP_NUM_THREADS="1", PAUSE_S="0",
        COLUMNS="300",
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()

    def wait(what: str, limit_s: float = 240) -> None:
        until = time.monotonic() + limit_s
        while slurm.state(job) != what:
            assert time.monotonic() < until, (slurm.state(job), log.read_text()[-3000:])
            assert slurm.state(job) != "FAILED", log.read_text()[-3000:]
            time.sleep(0.2)

    wait("RUNNING")
    until = time.monotonic() + 240
    while not reading.records(checkpoints / names.STORE):
        assert time.monotonic() < until, log.read_text()[-3000:]
        time.sleep(0.05)
    assert slurm.run("scancel", "--batch", "--signal=TERM", job).returncode == 0
    wait("PENDING")
    assert reading.records(checkpoints / names.STORE)[0].tags == ("shutdown",)
    wait("RUNNING")
    wait("COMPLETED")
    said = log.read_text()
    assert "start number 0" in said
    assert "start number 1" in said
    assert "resuming from ckpt-" in said

    other, undisturbed = script(work, tmp_path / "undisturbed")
    assert start(other, tmp_path / "other.log").wait(240) == 0
    assert trained(checkpoints) == trained(undisturbed)
