"""What a drafter will be worth with a body, from the body's own answers.

    python -m benchmarks.predict --body BODY --drafter vanilla=ID --temperature 0 0.7 1 --out runs/p
    python -m benchmarks.predict --body BODY --drafter A=DIR --drafter B=DIR --dataset FILE.jsonl \\
        --bench runs/bench/results.json --out runs/p

Prints, for each temperature and workload, expected tokens a step with greedy and with probabilistic
drafts, what the measures between both distributions are, how far the body's logits reach into its
softcap, the bench's measurement beside it if there is one, and the verdict: train, do not train, or
change the serving flags first. Answers and states stay in --out: the same command with another
drafter starts no server.
Exit codes: 0 predicted; 1 it could not be; 2 bad input; 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.arms import ArmError, named
from benchmarks.client import BenchError
from benchmarks.predict.distributions import SamplingError
from benchmarks.predict.evaluate import GREEDY, PROBABILISTIC
from benchmarks.prompts import WORKLOADS, PromptError, first_of_each, load_workloads
from benchmarks.schema import ResultsError, load


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = found.add_argument
    add("--body", required=True, help="hub id or folder of the body (verifier)")
    add("--drafter", action="append", required=True, metavar="NAME=MODEL", help="repeatable")
    add("--workload", nargs="+", choices=WORKLOADS, metavar="NAME")
    add("--dataset", action="append", default=[], type=Path, metavar="FILE.jsonl")
    add("--limit", type=int, metavar="K", help="the first K prompts of a workload")
    add("--temperature", type=float, nargs="+", default=[0.0, 0.7, 1.0], metavar="T")
    add("--depth", type=int, default=4, help="largest number of drafted tokens a step")
    add("--n", type=int, help="drafted tokens a step as served now (default: --depth)")
    add("--drafting", choices=(GREEDY, PROBABILISTIC), default=GREEDY, help="as served now")
    add("--repeats", type=int, default=1, help="answers a prompt at T > 0")
    add("--max-tokens", type=int, default=256)
    add("--seed", type=int, default=0)
    add("--closes", type=float, default=0.5,
        help="share of the way to a perfect drafter that training may close")  # fmt: skip
    add("--bench", type=Path, help="results.json of a bench: step costs, and what is compared")
    add("--max-model-len", type=int, default=8192)
    add("--dtype", default="auto")
    add("--gpu-memory-utilization", type=float, default=0.85)
    add("--server-flags", default="", metavar="FLAGS")
    add("--start-timeout", type=float, default=1800.0)
    add("--out", type=Path, default=Path("runs/predict"))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module for its exit codes."""
    options = parser().parse_args(arguments)
    from benchmarks.predict.session import Question, predict
    from benchmarks.predict.wording import lines
    from recipes.display import Display
    from recipes.servers import ServerPool
    from recipes.vllm_server import ServerError, ServerSpec

    try:
        shipped = options.workload or ([] if options.dataset else list(WORKLOADS))
        prompts = load_workloads([*shipped, *options.dataset])
        if options.limit is not None:
            prompts = first_of_each(prompts, options.limit)
        for name, least in (("depth", 1), ("repeats", 1), ("max_tokens", 1)):
            if getattr(options, name) < least:
                raise ArmError(f"--{name.replace('_', '-')} must be at least {least}.")
        n = options.n or options.depth
        if not 1 <= n <= options.depth or not 0 < options.closes <= 1:
            raise ArmError("--n must lie between 1 and --depth, --closes between 0 and 1.")
        if min(options.temperature) < 0:
            raise ArmError(f"--temperature {min(options.temperature)} must be 0 or more.")
        question = Question(
            options.body,
            dict(named(text, "--drafter") for text in options.drafter),
            prompts,
            tuple(dict.fromkeys(options.temperature)),
            options.depth, n, options.drafting, options.max_tokens, options.repeats, options.seed,
            None if options.bench is None else load(options.bench),
            options.closes,
        )  # fmt: skip
    except (ArmError, PromptError, ResultsError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    template = ServerSpec(
        name="predict", model=options.body, max_model_len=options.max_model_len,
        dtype=options.dtype, gpu_memory_utilization=options.gpu_memory_utilization,
        extra_args=tuple(shlex.split(options.server_flags)),
    )  # fmt: skip
    display = Display()
    try:
        with (
            ServerPool(options.out / "logs", display.note, options.start_timeout) as pool,
            display.activity("predict") as activity,
        ):
            report = predict(question, options.out, pool, template, activity.update)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with the missing answers", file=sys.stderr)
        return 130
    except (BenchError, ServerError, SamplingError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        display.close()
    print("\n".join(lines(report)))
    print(f"written: {options.out / 'prediction.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
