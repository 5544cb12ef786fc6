"""Reading vLLM's counters for the judge of progress, and describing processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from recipes.vllm import incidents, processes
from recipes.vllm.observe import read
from recipes.vllm.progress import Snapshot

METRICS = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 11.0
# TYPE vllm:generation_tokens counter
vllm:generation_tokens_total{engine="0",model_name="m"} 20.0
# TYPE vllm:request_success counter
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 7.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 1000.0
# TYPE http_requests counter
http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 7.0
http_requests_total{handler="/v1/completions",method="POST",status="5xx"} 4.0
"""


def test_work_is_tokens_and_answers_and_not_requests_that_were_given_up() -> None:
    assert read(METRICS) == (138.0, 5, 4.0)


def test_a_page_without_vllm_s_counters_says_nothing_of_work() -> None:
    assert read("# TYPE up gauge\nup 1.0\n") == (None, None, 0.0)


PROGRAM = """
import faulthandler, subprocess, sys, time
faulthandler.enable()
def wait_in_here():
    time.sleep(600)
if sys.argv[1:] == []:
    subprocess.Popen([sys.executable, __file__, "child"])
print("up", flush=True)
wait_in_here()
"""


def test_an_incident_holds_stacks_states_and_what_was_seen(tmp_path: Path) -> None:
    program, log = tmp_path / "program.py", tmp_path / "log"
    program.write_text(PROGRAM)
    with log.open("wb") as out:
        parent = subprocess.Popen([sys.executable, str(program)], stdout=out, stderr=out)
    try:
        until = time.monotonic() + 60
        while log.read_text().count("up") < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        pids = processes.tree(parent.pid)
        assert pids[0] == parent.pid
        assert len(pids) == 2
        assert processes.memory(pids) > 1_000_000
        seen = [Snapshot(1.0, status=200, work=5.0, waiting=1), Snapshot(3.0)]
        record = incidents.capture(tmp_path, "a/b", "is stuck", pids, log, seen)
    finally:
        parent.kill()
        parent.wait()
    text = record.read_text()
    assert record.name.endswith("-a-b.txt")
    assert "server a/b is stuck" in text
    assert "-2.0: health 200, work 5.0, waiting 1" in text
    assert f"process {pids[1]}: {sys.executable}" in text
    assert text.count("in wait_in_here") == 2  # one stack of each process
    assert all(processes.tree(pid) == [] for pid in pids)  # they were aborted for it


def test_a_process_that_is_gone_has_no_tree() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert processes.tree(done.pid) == []
    assert os.getpid() in processes.tree(os.getpid())
