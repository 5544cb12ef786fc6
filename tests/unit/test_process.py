"""Commands that the recipe runs: exit codes kept, interrupts passed on, nothing left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from recipes.process import StageError, run_command
from recipes.run_folder import RunFolder


def test_a_failing_command_names_its_log_and_keeps_its_code(tmp_path):
    run = RunFolder(tmp_path)
    code = "import sys; print('the reason'); sys.exit(7)"
    with pytest.raises(StageError, match="the reason") as caught:
        run_command(run, "train", [sys.executable, "-c", code])
    assert caught.value.exit_code == 7
    assert str(tmp_path / "logs" / "train.log") in str(caught.value)
    assert '"exit_code": 7' in (tmp_path / "commands.jsonl").read_text()


def test_a_killed_command_reports_its_signal(tmp_path):
    code = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(StageError) as caught:
        run_command(RunFolder(tmp_path), "train", [sys.executable, "-c", code])
    assert caught.value.exit_code == 128 + 9


PARENT = """
import signal
import sys
from pathlib import Path
from recipes.process import run_command
from recipes.run_folder import RunFolder
child = '''
import signal, sys, time, pathlib
def save(*_):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(60)
'''
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & had it ignored
try:
    run_command(RunFolder(Path(sys.argv[1])), "train", [sys.executable, "-c", child, sys.argv[2]])
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_an_interrupt_gives_the_command_time_to_save(tmp_path):
    saved = tmp_path / "saved"
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path), str(saved)],
        cwd=Path(__file__).parents[2],
    )
    log = tmp_path / "logs" / "train.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "up" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(parent.pid, signal.SIGINT)
    assert parent.wait(60) == 130
    assert saved.read_text() == "saved"


def test_a_command_ends_with_a_killed_recipe(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom recipes.process import run_command\n"
        "from recipes.run_folder import RunFolder\n"
        "child = 'import os,sys,time; print(os.getpid(), flush=True); time.sleep(60)'\n"
        "run_command(RunFolder(Path(sys.argv[1])), 'x', [sys.executable, '-c', child])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2]
    )
    log = tmp_path / "logs" / "x.log"
    while not log.exists() or not log.read_text().endswith("\n"):
        assert parent.poll() is None
        time.sleep(0.05)
    child = int(log.read_text())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        if "State:\tZ" in Path(f"/proc/{child}/status").read_text():
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{child}").exists()
