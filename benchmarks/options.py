"""The bench's command line, and the setup that it describes."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import arms as making
from benchmarks.arms import Arm, ArmError
from benchmarks.bench_setup import Setup
from benchmarks.prompts import (
    LENGTHS,
    WORKLOADS,
    PromptError,
    WorkloadPrompt,
    first_of_each,
    load_workloads,
)
from recipes.vllm_server import ServerSpec

# Fields of a request that --request may not set, and what sets them.
_OURS = {
    **dict.fromkeys(("model", "messages", "prompt", "cache_salt"), "the arms and prompts"),
    "temperature": "--temperature", "seed": "--seed",
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "--max-tokens"),
    **dict.fromkeys(("stream", "stream_options", "n", "best_of", "logprobs", "top_logprobs",
                     "return_token_ids", "use_beam_search"), "one streamed answer a prompt"),
    **dict.fromkeys(("chat_template", "add_generation_prompt", "continue_final_message", "echo"),
                    "the server's chat template; --raw goes without"),
}  # fmt: skip


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.acceptance",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arms = found.add_argument_group("what is compared")
    arms.add_argument("--body", help="hub id or folder of the body (verifier)")
    arms.add_argument(
        "--eagle3",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="an EAGLE-3 drafter; repeatable",
    )
    arms.add_argument(
        "--probabilistic",
        action="store_true",
        help="each EAGLE-3 drafter also with draft_sample_method probabilistic",
    )
    arms.add_argument("--mtp", metavar="MODEL", help="an MTP assistant, e.g. Google's")
    arms.add_argument("--dflash", metavar="MODEL", help="a DFlash drafter")
    arms.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="any vLLM speculative config; body, server_flags and experimental in it "
        "are the bench's own; repeatable",
    )
    arms.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="all arms once more with these server flags; repeatable",
    )
    arms.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="NAME[:N]=URL",
        help="a server that you run, drafting N tokens a step; repeatable",
    )
    arms.add_argument(
        "--n",
        type=int,
        nargs="+",
        default=[4],
        metavar="N",
        help="drafted tokens a step: one number for 1 to N, or a list",
    )
    asked = found.add_argument_group("what is asked")
    asked.add_argument(
        "--workload",
        nargs="+",
        choices=WORKLOADS,
        metavar="NAME",
        help=f"of {', '.join(WORKLOADS)} (default: all, or none with --dataset)",
    )
    asked.add_argument(
        "--dataset",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.jsonl",
        help="your own prompts; repeatable",
    )
    asked.add_argument("--length", nargs="+", choices=LENGTHS, help="only answers of these lengths")
    asked.add_argument("--smoke", action="store_true", help="a fixed small subset of the prompts")
    asked.add_argument("--limit", type=int, metavar="K", help="the first K prompts of a workload")
    asked.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.7], metavar="T")
    asked.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        default=[1],
        metavar="C",
        help="requests at once, e.g. 1 2 4 8",
    )
    asked.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument(
        "--raw",
        action="store_true",
        help="bare prompts to /v1/completions, without the chat template: NOT how a "
        "model answers, and every output says so",
    )
    asked.add_argument(
        "--request", type=_json_object, default={}, metavar="JSON", help="merged into every request"
    )
    asked.add_argument("--timeout", type=float, default=600.0, help="seconds without a token")
    how = found.add_argument_group("how")
    how.add_argument(
        "--blocks",
        type=int,
        default=2,
        help="shares of the prompts between which arms take turns (default 2)",
    )
    how.add_argument(
        "--in-turn", action="store_true", help="one server at a time (always so on a GPU)"
    )
    how.add_argument(
        "--break-even",
        action="store_true",
        help="time the steps with vLLM's synthetic acceptance: more servers",
    )
    how.add_argument("--max-model-len", type=int, default=8192)
    how.add_argument("--dtype", default="auto")
    how.add_argument("--gpu-memory-utilization", type=float, default=0.85)
    how.add_argument("--server-flags", default="", metavar="FLAGS", help="for every server")
    how.add_argument(
        "--start-timeout", type=float, default=1800.0, help="seconds a server may take"
    )
    how.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the bench")
    how.add_argument("--dry-run", action="store_true", help="print what would run; start nothing")
    return found


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"not valid JSON ({e})") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    ours = [key for key in value if key in _OURS]
    if ours:
        raise argparse.ArgumentTypeError(
            f"{ours[0]!r} is the bench's own ({_OURS[ours[0]]}), so that what it reports is what "
            "was asked"
        )
    return value


def make_arms(options: argparse.Namespace) -> list[Arm]:
    """The arms that the options name.

    Raises:
        ArmError: an arm that cannot be understood, or none.
    """
    ns = range(1, options.n[0] + 1) if len(options.n) == 1 else options.n
    drafters = []
    for text in options.eagle3:
        name, model = making.named(text, "--eagle3")
        drafters.append(making.eagle3(name, model))
        if options.probabilistic:
            drafters.append(making.eagle3(name, model, probabilistic=True))
    if options.mtp:
        drafters.append(making.Drafter("MTP assistant", {"method": "mtp", "model": options.mtp}))
    if options.dflash:
        drafters.append(making.Drafter("DFlash", {"method": "dflash", "model": options.dflash}))
    drafters += [making.parse_arm(text) for text in options.arm]
    variants = {
        name: tuple(shlex.split(flags))
        for name, flags in (making.named(text, "--variant") for text in options.variant)
    }
    found: list[Arm] = []
    if options.body:
        template = _template(options)
        found = [making.with_server(a, template) for a in making.multiply(drafters, ns, variants)]
    elif drafters or variants:
        raise ArmError("--body is missing: the body that these drafters draft for.")
    found += making.parse_endpoints(options.endpoint)
    if not found:
        raise ArmError("There is nothing to compare: give --body with drafters, or --endpoint.")
    return found


def _template(options: argparse.Namespace) -> ServerSpec:
    return ServerSpec(
        name="",
        model=options.body,
        max_model_len=options.max_model_len,
        dtype=options.dtype,
        gpu_memory_utilization=options.gpu_memory_utilization,
        extra_args=tuple(shlex.split(options.server_flags)),
    )


def choose_prompts(options: argparse.Namespace) -> list[WorkloadPrompt]:
    """The prompts that the options name.

    Raises:
        PromptError: a file that cannot be used, or nothing is left.
    """
    shipped = options.workload or ([] if options.dataset else list(WORKLOADS))
    found = load_workloads([*shipped, *options.dataset], smoke=options.smoke)
    if options.length:
        found = [p for p in found if p.length in options.length]
    if options.limit is not None:
        found = first_of_each(found, options.limit)
    if not found:
        raise PromptError("No prompt is left with these --length and --limit.")
    return found


def make_setup(options: argparse.Namespace) -> Setup:
    """The bench that the options describe.

    Raises:
        ArmError, PromptError: as `make_arms` and `choose_prompts`.
    """
    arms, prompts = make_arms(options), choose_prompts(options)
    for name, values, least in (
        ("--blocks", [options.blocks], 1),
        ("--max-tokens", [options.max_tokens], 1),
        ("--concurrency", options.concurrency, 1),
        ("--n", options.n, 0),
    ):
        if min(values) < least:
            raise ArmError(f"{name} {min(values)} must be at least {least}.")
    if min(options.temperature) < 0:
        raise ArmError(f"--temperature {min(options.temperature)} must be 0 or more.")
    return Setup(
        body=options.body or "as the endpoints serve it",
        arms=tuple(arms),
        prompts=tuple(prompts),
        temperatures=tuple(dict.fromkeys(options.temperature)),
        concurrencies=tuple(dict.fromkeys(options.concurrency)),
        blocks=options.blocks,
        max_tokens=options.max_tokens,
        seed=options.seed,
        raw=options.raw,
        timeout_s=options.timeout,
        request=options.request,
        identity=_identity(arms),
    )


def _identity(arms: Sequence[Arm]) -> dict[str, str]:
    """Size and time of every file in the folders that are served."""
    folders = {a.server.model for a in arms if a.server is not None}
    folders |= {str((a.spec.speculative_config or {}).get("model", "")) for a in arms}
    found = {}
    for name in sorted(f for f in folders if f and Path(f).is_dir()):
        files = sorted(p for p in Path(name).iterdir() if p.is_file())
        found[name] = str([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files])
    return found
