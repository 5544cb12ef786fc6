"""The measured part of a drafter's card, from a results.json.

python -m benchmarks.model_card results.json --arm "fine-tuned" [--out CARD.md]

Markdown for the model's README: acceptance and speed with intervals, what was compared, what was
not shown, how to serve it, what it was measured with. An arm that was refused gets no card: exit
code 3 and the verdict.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.arm_verdict import EXIT_DEGENERATE
from benchmarks.schema import Results, ResultsError, load
from benchmarks.summary import summarise


class RefusedError(ValueError):
    """The arm's text is degenerate; the message is its verdict."""


def card(results: Results, arm: str) -> str:
    """The card of one drafter, at every n that was measured.

    Raises:
        ResultsError: there is no such drafting arm in the results, or it was not measured.
        RefusedError: its answers, or those it is compared with, are degenerate.
    """
    summary = summarise(results)
    cells = [c for c in summary["cells"] if c["arm"] == arm and c["n"] > 0]
    if not cells:
        known = sorted({a.name for a in results.arms if a.n > 0 and not a.synthetic})
        raise ResultsError(f"No measured drafter is called {arm!r}; there are {', '.join(known)}.")
    refused = [c for c in cells if c["refused"]]
    if refused:
        words = [c["verdict"]["text"] for c in refused if c["verdict"]["refused"]]
        raise RefusedError(f"{arm} gets no card. " + "\n".join(words[:1]))
    return "\n\n".join(_parts(results, summary, cells, arm)) + "\n"


def _parts(
    results: Results, summary: dict[str, Any], cells: Sequence[dict[str, Any]], arm: str
) -> Iterator[str]:
    deepest = max(c["n"] for c in cells)
    yield "## Measured"
    if results.raw:
        yield "**RAW ENDPOINT**: measured without a chat template; not how the model answers."
    yield (
        f"Body: {_name(results.body)}. Requests went through "
        f"{'/v1/completions' if results.raw else '/v1/chat/completions, with the chat template'}; "
        "every number is paired by prompt with the same body without speculation, with 95 % "
        "intervals from a bootstrap over prompts. Acceptance is unconditional: drafts accepted up "
        "to a position, of all drafts."
    )
    yield f"### Acceptance at n = {deepest}"
    yield _acceptance([c for c in cells if c["n"] == deepest and c.get("acceptance")], deepest)
    yield "### Speed against no speculation"
    yield _speed(cells)
    words = [c["speed_words"] for c in cells if "no difference" in c.get("speed_words", "")]
    if words:
        yield "Not shown:\n" + "\n".join(f"- {w}" for w in words)
    lossless = [
        f"- n = {c['n']}, {c['workload']}, T = {c['temperature']:g}: "
        f"{(c.get('lossless') or c['distribution'])['text']}"
        for c in cells
        if c.get("lossless") or c.get("distribution")
    ]
    if lossless:
        yield "### Does it change the answers?"
        yield "\n".join(lossless)
    divided = results.settings.get("head_temperatures", {}).get(arm)
    if divided is not None:
        yield (
            f"The drafter's head was divided by {divided:g} after training (its temperature for "
            "drafts drawn from its distribution); the weights of this model are those."
        )
    choices = [c for c in summary["choices"] if c["arm"] == arm]
    if choices:
        yield "### How to serve it"
        yield "\n".join(_choice(c) for c in choices)
    yield "### Measured with"
    yield _made_with(results)


def _acceptance(cells: Sequence[dict[str, Any]], n: int) -> str:
    head = ["workload", "T", "at once", "prompts", *(f"pos {k}" for k in range(n)), "tokens a step"]
    lines = [_line(head), "|" + " --- |" * len(head)]
    for c in cells:
        lines.append(
            _line(
                [
                    c["workload"], f"{c['temperature']:g}", str(c["concurrency"]),
                    str(c["prompts"]), *(_interval(a, ".3f") for a in c["acceptance"]),
                    _interval(c["tokens_per_step"], ".2f"),
                ]
            )
        )  # fmt: skip
    return "\n".join(lines) if cells else "The server did not count by request: not known."


def _speed(cells: Sequence[dict[str, Any]]) -> str:
    head = ["n", "workload", "T", "at once", "tok/s", "ratio"]
    lines = [_line(head), "|" + " --- |" * len(head)]
    for c in cells:
        speed = "-" if c["tokens_per_s"] is None else f"{c['tokens_per_s']:.1f}"
        seen = c.get("speedup")
        lines.append(
            _line(
                [
                    str(c["n"]), c["workload"], f"{c['temperature']:g}", str(c["concurrency"]),
                    speed, _interval(seen, ".2f") if seen else "-",
                ]
            )
        )  # fmt: skip
    return "\n".join(lines)


def _choice(choice: dict[str, Any]) -> str:
    points = "; ".join(f"{p['concurrency']} at once: {p['reason']}" for p in choice["points"])
    where = f"- {choice['workload']}, T = {choice['temperature']:g}: {points}"
    config = choice["speculative_config"]
    if config is None:
        return where
    shown = {k: _name(v) if k == "model" else v for k, v in config.items()}
    return f"{where}\n  `--speculative-config '{json.dumps(shown)}'`"


def _made_with(results: Results) -> str:
    made = results.made_with
    versions = ", ".join(f"{k} {v}" for k, v in made.get("versions", {}).items())
    return (
        f"{made.get('gpu') or 'no GPU'}; {made.get('processor')}, {made.get('cores')} cores; "
        f"{versions}; speculators-patches {made.get('commit')}; {results.created}. "
        f"{results.settings}"
    )


def _name(model: Any) -> str:
    """A hub id as it is; of a folder its last name, as a reader has other folders."""
    path = Path(str(model))
    return path.name if path.is_absolute() or path.is_dir() else str(model)


def _interval(seen: dict[str, Any], form: str) -> str:
    value, low, high = (format(seen[k], form) for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 2 for files or arms that cannot be used, 3 for a refused arm."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.model_card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("--arm", required=True, help="the drafter's name in the bench")
    parser.add_argument("--out", type=Path, help="file to write (default: printed)")
    options = parser.parse_args(arguments)
    try:
        text = card(load(options.results), options.arm)
        if options.out is None:
            print(text, end="")
        else:
            options.out.write_text(text, "utf-8")
    except RefusedError as e:
        print(e, file=sys.stderr)
        return EXIT_DEGENERATE
    except (ResultsError, OSError) as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
