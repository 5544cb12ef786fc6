"""Kinds of drafter that upstream trains and vLLM serves for a Gemma 4 body: end to end, or why not.

    python -m benchmarks.drafter_kinds --run runs/miniature --out runs/kinds

For each kind: upstream trains one on the miniature's vanilla rows (two epochs: it is to run, not to
be good), vLLM serves it with n = 4, and prompts are answered at T = 0 through the chat template.
Works means: trained, served, drafted, and the answers are those of the body without speculation.
Else the first step that failed and its error, in its own words. Writes kinds.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import BenchError, Client
from benchmarks.prompts import WorkloadPrompt, load_workload
from recipes.vllm_server import Server, ServerError, ServerSpec

COMMON = (
    "--total-seq-len", "512", "--train-data-ratio", "0.9", "--epochs", "2", "--optimizer", "adamw",
    "--lr", "0.004", "--seed", "0", "--hidden-states-dtype", "float32", "--loss-implementation",
    "eager", "--on-missing", "raise", "--checkpoint-every-minutes", "0", "--num-workers", "0",
)  # fmt: skip
SDPA = ("--draft-attn-impl", "sdpa")
LAYERS = ("--target-layer-ids", "1", "2", "3")
MASK = ("--mask-token-id", "3")  # the miniature's <unk>, which no text holds


@dataclass(frozen=True)
class Kind:
    """How a kind is trained, and vLLM's speculative config for it without the model."""

    name: str
    flags: tuple[str, ...]
    config: dict[str, Any]


_PARALLEL = (*SDPA, *LAYERS, *MASK)
_BLOCKS = (*_PARALLEL, "--draft-arch", "qwen3", "--num-layers", "2", "--block-size")
KINDS = (
    Kind("eagle3", (*SDPA, *LAYERS, "--ttt-steps", "4"), {"method": "eagle3"}),
    Kind(
        "peagle",
        (*_PARALLEL, "--num-depths", "4"),
        {"method": "eagle3", "parallel_drafting": True},
    ),
    Kind("dflash", (*_BLOCKS, "5"), {"method": "dflash"}),
    Kind("dspark", (*_BLOCKS, "4"), {"method": "dspark"}),
    Kind("mtp", (), {"method": "mtp"}),
)


@dataclass
class Outcome:
    """What became of one kind; `failed_in` is "" where it works."""

    kind: str
    failed_in: str = ""
    error: str = ""
    drafts: int = 0
    accepted: tuple[int, ...] = ()
    same_answers: int = 0
    prompts: int = 0


def last_error(log: Path) -> str:
    """The last exception's line in a log, else its last line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines()]
    plain = [
        re.sub(r"^\(\w+ pid=\d+\)\s*(ERROR [\d: -]+\[[^\]]*\]\s*)?", "", line) for line in lines
    ]
    # pydantic says what is wrong in the line behind its own.
    joined = [
        f"{line}: {plain[k + 1]}" if "validation error for" in line and k + 1 < len(plain) else line
        for k, line in enumerate(plain)
    ]
    errors = [line for line in joined if re.match(r"^[\w.]*(Error|Exception|Interrupt)\b.*", line)]
    # vLLM wraps the cause: "Engine core initialization failed. See root cause above."
    causes = [e for e in errors if "See root cause above" not in e] or errors
    return (causes or [line for line in plain if line] or ["nothing was logged"])[-1][:400]


def train(kind: Kind, body: Path, data: Path, states: Path, out: Path) -> tuple[Path | None, str]:
    """(folder that vLLM can load, "") or (None, upstream's error)."""
    from recipes.upstream import newest_drafter

    folder = out / kind.name
    folder.mkdir(parents=True, exist_ok=True)
    argv = [
        sys.executable, "-m", "speculators_patches", "run", "--module", "speculators.train", "--",
        "--speculator-type", kind.name, "--verifier-name-or-path", str(body), "--data-path",
        str(data), "--hidden-states-path", str(states), "--save-path", str(folder / "checkpoints"),
        "--log-dir", str(folder / "logs"), *COMMON, *kind.flags,
    ]  # fmt: skip
    log = folder / "train.log"
    with log.open("wb") as file:
        code = subprocess.run(argv, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        return None, last_error(log)
    try:
        return newest_drafter(folder / "checkpoints"), ""
    except FileNotFoundError as e:
        return None, str(e)


def serve(
    kind: Kind,
    drafter: Path,
    body: Path,
    prompts: Sequence[WorkloadPrompt],
    plain: dict[str, str],
    out: Path,
) -> Outcome:
    """vLLM with this drafter, asked every prompt once."""
    spec = ServerSpec(
        f"kind-{kind.name}", str(body), dtype="float32", max_model_len=256,
        speculative_config={**kind.config, "model": str(drafter), "num_speculative_tokens": 4},
    )  # fmt: skip
    log = out / kind.name / "serve.log"
    try:
        with Server(spec, log) as server:
            endpoint = server.wait_ready(300.0)
            before = server.counters()
            answers = ask(endpoint.base_url, endpoint.model, prompts)
            spent = server.counters() - before
    except (ServerError, BenchError) as e:
        error = last_error(log) if log.is_file() else str(e)
        return Outcome(kind.name, "serving", error, prompts=len(prompts))
    same = sum(answers[p.id] == plain[p.id] for p in prompts)
    found = Outcome(
        kind.name, "", "", int(spent.drafts), tuple(int(a) for a in spent.accepted_per_pos), same,
        len(prompts),
    )  # fmt: skip
    if not spent.drafts:
        found.failed_in, found.error = "serving", "it answered without drafting a token"
    elif same < len(prompts):
        found.failed_in = "answers"
        found.error = f"{len(prompts) - same} of {len(prompts)} answers at T = 0 are others"
    return found


def ask(url: str, model: str, prompts: Sequence[WorkloadPrompt]) -> dict[str, str]:
    """Answers at T = 0 by prompt."""
    with Client(url, model) as client:
        return {
            p.id: client.ask(p.messages, f"prompt {p.id}", temperature=0.0, max_tokens=96).text
            for p in prompts
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit codes: 0 every kind was tried, 1 the body itself could not be served."""
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--run", type=Path, required=True, help="a finished miniature run")
    found.add_argument("--out", type=Path, required=True)
    found.add_argument("--kind", nargs="+", choices=[k.name for k in KINDS])
    found.add_argument("--prompts", type=int, default=12)
    options = found.parse_args(arguments)
    from recipes.environment import describe

    body = options.run / "bodies" / "vanilla"
    data = options.run / "vanilla" / "prepare" / "dataset"
    states = options.run / "vanilla" / "extract" / "hidden_states"
    prompts = load_workload(options.run / "bodies" / "prompts.heldout.jsonl")[: options.prompts]
    try:
        spec = ServerSpec("kinds-plain", str(body), dtype="float32", max_model_len=256)
        with Server(spec, options.out / "plain.log") as server:
            endpoint = server.wait_ready(300.0)
            plain = ask(endpoint.base_url, endpoint.model, prompts)
    except (ServerError, BenchError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    outcomes = []
    for kind in KINDS:
        if options.kind and kind.name not in options.kind:
            continue
        drafter, error = train(kind, body, data, states, options.out)
        outcome = (
            Outcome(kind.name, "training", error)
            if drafter is None
            else serve(kind, drafter, body, prompts, plain, options.out)
        )
        outcomes.append(outcome)
        print(f"{kind.name}: {outcome.failed_in or 'works'} {outcome.error}", flush=True)
        report = {"made_with": describe(), "kinds": [asdict(o) for o in outcomes]}
        (options.out / "kinds.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
