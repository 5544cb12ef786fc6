"""Paired acceptance and speed of drafters, with a look at the text.

    python -m benchmarks.acceptance --body BODY --eagle3 tuned=FOLDER --n 4 --dry-run
    python -m benchmarks.acceptance --body BODY --eagle3 vanilla=ID --eagle3 tuned=FOLDER \\
        --mtp ASSISTANT --dflash ID --n 4 --concurrency 1 4 --out runs/bench
    python -m benchmarks.acceptance --endpoint none=http://127.0.0.1:8000 \\
        --endpoint drafter:4=http://127.0.0.1:8001

Every arm answers the same prompts through the chat template, in blocks that take turns; the same
command continues an interrupted bench. Writes report.md, report.html, PNGs and results.json.
Exit codes: 0 measured; 1 nothing could be measured; 2 bad input; 3 an arm's text is degenerate, so
its speed is not reported; 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence

from benchmarks.arm_verdict import EXIT_DEGENERATE
from benchmarks.arms import ArmError
from benchmarks.bench_setup import Setup
from benchmarks.client import BenchError
from benchmarks.options import make_setup, parser
from benchmarks.prompts import PromptError
from benchmarks.schema import ResultsError

__all__ = ["BenchError", "main"]


def describe(setup: Setup, together: bool) -> list[str]:
    """What would run, as lines."""
    from recipes.vllm_server import command

    lines = [
        f"{len(setup.arms)} arms x {len(setup.prompts)} prompts x {len(setup.temperatures)} "
        f"temperatures x {len(setup.concurrencies)} concurrencies = {setup.requests} requests of "
        f"up to {setup.max_tokens} tokens, in {setup.blocks} blocks",
        "prompts: " + ", ".join(f"{k} {len(v)}" for k, v in setup.workloads.items()),
        "endpoint: " + ("RAW ENDPOINT /v1/completions, no chat template" if setup.raw
                        else "/v1/chat/completions"),
        "servers: " + ("side by side" if together else "one at a time, started in turn"),
    ]  # fmt: skip
    for arm in setup.arms:
        tail = " (experimental)" if arm.spec.experimental else ""
        what = shlex.join(command(arm.server)) if arm.server is not None else arm.endpoint
        lines.append(f"{arm.spec.key}{tail}: {what}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see the module for its exit codes."""
    options = parser(__doc__).parse_args(arguments)
    from recipes.vllm_server import ServerError

    try:
        setup = make_setup(options)
        from recipes.upstream import has_accelerator

        together = not options.in_turn and not has_accelerator()
        if options.dry_run:
            print("\n".join(describe(setup, together)))
            return 0
    except (ArmError, PromptError, ServerError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return _run(setup, options, together)


def _run(setup: Setup, options: argparse.Namespace, together: bool) -> int:
    from benchmarks.session import run_bench
    from benchmarks.words import spoken
    from recipes.display import Display
    from recipes.servers import ServerPool
    from recipes.vllm_server import ServerError

    def terminate(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, terminate)
    display = Display()
    try:
        with (
            ServerPool(options.out / "logs", display.note, options.start_timeout) as pool,
            display.activity("bench") as activity,
        ):
            outcome = run_bench(
                setup, options.out, pool, together=together, progress=activity.update,
                break_even=options.break_even,
            )  # fmt: skip
    except KeyboardInterrupt:
        print("interrupted; the same command continues after the finished blocks", file=sys.stderr)
        return 130
    except (BenchError, ServerError, ResultsError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    finally:
        display.close()
    print("\n".join(spoken(outcome.results, outcome.summary)))
    print(f"Report: {options.out / 'report.html'}, {options.out / 'report.md'}")
    return EXIT_DEGENERATE if outcome.refused else 0


if __name__ == "__main__":
    sys.exit(main())
