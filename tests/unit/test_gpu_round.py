"""A round of measurements: each has a device for itself, none is lost, none is made twice."""

from __future__ import annotations

import fcntl
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from benchmarks import gpu_round
from recipes.vllm import processes

ROOT = Path(__file__).resolve().parents[2]
# Stands where a benchmark does: notes its environment and times, and ends as it is told.
_MEASURES = """
import json, os, sys, time
began = time.time()
time.sleep(float(sys.argv[1]))
if sys.argv[2] != "well" and not os.path.exists(sys.argv[2]):
    sys.exit("it failed")
names = ("CUDA_VISIBLE_DEVICES", "BENCH_TURN")
record = {name: os.environ.get(name) for name in names}
record |= {"cores": sorted(os.sched_getaffinity(0)), "began": began, "ended": time.time()}
open(sys.argv[sys.argv.index("--out") + 1], "w").write(json.dumps(record))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "benchmarks"
    found.mkdir()
    (found / "one.py").write_text(_MEASURES)
    monkeypatch.setattr(gpu_round, "FOLDER", found)
    monkeypatch.chdir(tmp_path)  # no other package of that name in front
    return found


def test_every_command_of_a_round_is_one_that_its_benchmark_takes() -> None:
    for job in gpu_round.jobs(gpu_round.COMMANDS):
        main = importlib.import_module(f"benchmarks.{job.words[0]}").main
        if job.words[0] != "ttt_cost":  # argparse
            app = typer.Typer()
            app.command()(main)
            typer.main.get_command(app).make_context(job.name, [*job.words[1:], "--out", "x"])
    names = [job.name for job in gpu_round.jobs(gpu_round.COMMANDS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("text", "says"), [("", "names no benchmark"), ("nothing --x", "names no benchmark"),
                       ("one 'x", "No closing quotation"),
                       ("one 0 well --out x", "own --out"), ("one --out=x", "own --out")],
)  # fmt: skip
def test_what_cannot_run_is_refused_before_anything_does(
    text: str, says: str, folder: Path
) -> None:
    with pytest.raises(typer.BadParameter, match=says):
        gpu_round.jobs((text,))


def test_each_device_has_one_at_a_time_and_the_cores_are_divided(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    wanted = gpu_round.jobs(tuple(f"one 0.{n} well" for n in range(1, 6)))
    assert gpu_round.Round(out, ["0", "3"]).run(wanted)
    records = [json.loads((out / f"{job.name}.json").read_text()) for job in wanted]
    assert {record["CUDA_VISIBLE_DEVICES"] for record in records} == {"0", "3"}
    for device in ("0", "3"):
        mine = [one for one in records if one["CUDA_VISIBLE_DEVICES"] == device]
        assert {one["BENCH_TURN"] for one in mine} == {str(out / f"turn.{device}")}
        times = sorted((one["began"], one["ended"]) for one in mine)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(times))
    both = {tuple(record["cores"]) for record in records}
    if len(os.sched_getaffinity(0)) > 1:
        one, other = both
        assert not set(one) & set(other)
        assert set(one) | set(other) == os.sched_getaffinity(0)


def test_a_gpu_goes_by_the_name_that_the_round_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_round.visible() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-3c")
    assert gpu_round.visible() == ["5", "GPU-3c"]


@pytest.mark.parametrize("among", [1, 2, 3])
def test_threads_of_one_core_stay_together(
    among: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Eight threads of four cores, numbered as Linux does: 0 and 4 are one core.
    class Place(type(tmp_path)):  # type: ignore[misc]
        def read_text(self, *_: object, **__: object) -> str:
            core = int(self.parts[5].removeprefix("cpu"))
            return f"{core % 4},{core % 4 + 4}"

    monkeypatch.setattr(gpu_round, "Path", Place)
    parts = gpu_round.shares(set(range(8)), among)
    assert len(parts) == among
    assert len({len(part) for part in parts}) == 1
    taken = [core for part in parts for core in part]
    assert len(taken) == len(set(taken)) == 2 * (4 // among) * among
    assert all({core % 4, core % 4 + 4} <= set(part) for part in parts for core in part)
    assert gpu_round.shares({3, 7}, 2) == [[3, 7], [3, 7]]  # one core for two


def test_a_folder_has_one_round_at_a_time(folder: Path, tmp_path: Path) -> None:
    wanted = gpu_round.jobs(("one 0 well",))
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another round works in"):
            gpu_round.Round(tmp_path / "out", []).run(wanted)
    assert gpu_round.Round(tmp_path / "out", []).run(wanted)


def test_a_spoilt_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "round.json").write_text("{")
    with pytest.raises(typer.BadParameter, match=r"round.json is no JSON; move it away"):
        gpu_round.Round(tmp_path, [])


def test_one_that_cannot_be_started_stops_no_other(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, _ = wanted = gpu_round.jobs(("one 0 well", "one 0.1 well"))
    (tmp_path / "out" / f"{first.name}.log").mkdir(parents=True)
    assert not gpu_round.Round(tmp_path / "out", ["MIG-GPU-1/1/0"]).run(wanted)
    assert gpu_round.Round(tmp_path / "out", []).left(wanted) == [first]
    assert "Is a directory" in capfd.readouterr().err


def test_one_that_fails_stops_no_other_and_alone_is_run_again(folder: Path, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"
    wanted = gpu_round.jobs(("one 0 well", f"one 0 {mended}", "one 0.1 well", "one 0 well"))
    good, bad, other = wanted  # the same command once
    assert not gpu_round.Round(out, []).run(wanted)
    assert "it failed" in (out / f"{bad.name}.log").read_text()
    ended = json.loads((out / "round.json").read_text())
    assert [ended[job.name]["exit_code"] for job in wanted] == [0, 1, 0]
    assert gpu_round.Round(out, []).left(wanted) == [bad]
    before = (out / f"{good.name}.json").read_text()
    mended.touch()
    assert gpu_round.Round(out, []).run(wanted)
    assert (out / f"{good.name}.json").read_text() == before
    # In another order, or among others, a command has the name that it had.
    assert gpu_round.Round(out, []).left(gpu_round.jobs(("one 1 well", "one 0.1 well"))) == [
        gpu_round.Job(gpu_round.jobs(("one 1 well",))[0].name, ("one", "1", "well"))
    ]
    (out / f"{other.name}.json").unlink()  # moved away
    assert gpu_round.Round(out, []).left(wanted) == [other]


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP, signal.SIGTERM]]
)
def test_interrupted_it_ends_what_it_started_and_goes_on_later(
    numbers: list[signal.Signals], tmp_path: Path
) -> None:
    # A real benchmark, which compiles when the signal comes, with processes of its own.
    tokens = 120 + 8 * len(numbers) + numbers[0]  # no other test's process has the same
    command = f"train_step --divide 16 --ttt 3 --tokens {tokens} --loss eager --steps 1"
    out = tmp_path / "out"
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_round", "--out", str(out), command],
            cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
    try:
        marks: list[int] = []
        until = time.monotonic() + 120
        while len(marks) < 2 and time.monotonic() < until:  # the benchmark and its child
            time.sleep(0.2)
            marks = processes_with(str(out / "train_step-"))
            marks += processes_with(f'"tokens": {tokens}')
        assert len(marks) >= 2
        for number in numbers:
            process.send_signal(number)
        assert process.wait(90) in [128 + number for number in numbers]
    finally:
        process.terminate()
        process.wait(90)
    until = time.monotonic() + 10
    while any(map(processes.tree, marks)) and time.monotonic() < until:
        time.sleep(0.1)
    assert [pid for pid in marks if processes.tree(pid)] == []
    assert "goes on with what is left" in (tmp_path / "said").read_text()
    again = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_round", "--out", str(out), "--dry-run", command],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert f"to run: python -m benchmarks.{command}" in again.stdout


def processes_with(text: str) -> list[int]:
    """Those with `text` in their command line, but for the round's own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if text in line and "gpu_round" not in line:
                found.append(int(entry.name))
    return found
