"""Upstream's regenerate-responses in forks of this process, against the chat server.

For probes: the process imports upstream once (10 s), each run is a fork (half a second). What a run
left is compared with what the server's rule says must be there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.faults.probes.chat_server import answer_to, prompt_of, tokens

KILLED = -9


def tokenizer(folder: Path) -> Path:
    """Writes a tokenizer of one token a byte; its folder, which is also the model's name."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # How byte-level tokenizers write bytes that are no printable character.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = {byte: chr(byte) for byte in printable}
    signs |= {
        byte: chr(256 + place)
        for place, byte in enumerate(b for b in range(256) if b not in printable)
    }
    made = Tokenizer(models.BPE(vocab={signs[b]: b for b in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token=signs[0]).save_pretrained(folder)
    return folder


class ChatServer:
    """The chat server in a process of its own."""

    def __init__(self, model: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.probes.chat_server", str(model)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"

    @property
    def chat(self) -> str:
        return f"{self.url}/v1/chat/completions"

    def plan(self, **plan: Any) -> None:
        self._ask("/plan", json.dumps(plan).encode())

    def asked(self) -> list[dict[str, Any]]:
        answer: list[dict[str, Any]] = self._ask("/asked")
        return answer

    def _ask(self, path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(self.url + path, data, timeout=30) as answer:
            return json.load(answer)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def regenerate(
    endpoint: str, prompts: Path, outfile: Path, server: ChatServer | None = None,
    plan: dict[str, Any] | None = None, env: dict[str, str] | None = None, **options: Any,
) -> tuple[int, str]:  # fmt: skip
    """(exit code, what it printed) of one run in a fork; a killed one has `KILLED`.

    Args:
        plan: for `server`, which may kill this run.
    """
    from speculators.cli.regenerate_responses import regenerate_responses

    log = outfile.with_suffix(".log")
    gate, opener = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(opener)
        os.read(gate, 1)  # until the server knows whom to kill
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(env or {})
        code = 0
        try:
            regenerate_responses(
                endpoint=endpoint, dataset=str(prompts), outfile=str(outfile),
                **{"resume": True, "concurrency": 4, "max_tokens": 4096, **options},
            )  # fmt: skip
        except SystemExit as stop:
            if isinstance(stop.code, str):
                os.write(2, stop.code.encode() + b"\n")
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:  # noqa: BLE001 - the fork must not return into the test
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            code = 70
        os._exit(code)
    os.close(gate)
    if server is not None:
        server.plan(pid=pid, **(plan or {}))
    os.write(opener, b"x")
    os.close(opener)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


def expected(prompts: list[dict[str, Any]]) -> dict[str, list[tuple[list[int], list[int]]]]:
    """What must be there: (input_ids, loss_mask) of each row of each conversation, by its id."""
    rows: dict[str, list[tuple[list[int], list[int]]]] = {}
    for prompt in prompts:
        history: list[dict[str, Any]] = []
        for turn in prompt["messages"]:
            history.append(turn)
            before = tokens(prompt_of(history))
            after = [*tokens(answer_to(history)), 0]
            rows.setdefault(prompt["id"], []).append(
                (before + after, [0] * len(before) + [1] * len(after))
            )
            history.append({"role": "assistant", "content": answer_to(history)})
    return rows


def rows_in(outfile: Path) -> dict[str, list[tuple[list[int], list[int]]]]:
    """The same of a responses file, every line of which must be a row."""
    rows: dict[str, list[tuple[list[int], list[int]]]] = {}
    if outfile.exists():
        for line in outfile.read_text().splitlines():
            row = json.loads(line)
            rows.setdefault(row["primary_id"], []).append((row["input_ids"], row["loss_mask"]))
    return rows


def conversations(number: int, turns: int = 2) -> list[dict[str, Any]]:
    """`number` prompts; every other one has `turns` turns."""
    return [
        {
            "id": f"c{n}",
            "messages": [
                {"role": "user", "content": f"question {n}.{t}"}
                for t in range(turns if n % 2 else 1)
            ],
        }
        for n in range(number)
    ]


def write(path: Path, prompts: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(p) + "\n" for p in prompts))
    return path
