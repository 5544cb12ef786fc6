"""Render a results.json, or compare two.

python -m benchmarks.report results.json [--out DIR]    report.md, report.html and PNGs
python -m benchmarks.report A.json B.json               B against A by prompt, as Markdown
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import stats, wording
from benchmarks.cells import other_prompts
from benchmarks.plots import draw_all
from benchmarks.report_render import markdown, page
from benchmarks.report_sections import sections
from benchmarks.schema import RequestRow, Results, ResultsError, dumps, load
from benchmarks.stats import StatsError
from benchmarks.summary import summarise

_Key = tuple[str, int, str, float, int]


def write_report(results: Results, folder: Path) -> dict[str, Any]:
    """Write results.json, report.md, report.html and the PNGs into `folder`; returns the summary.

    Raises:
        ResultsError: there is nothing to report.
        OSError: the folder cannot be written.
    """
    summary = summarise(results)
    pictures = draw_all(summary)
    parts = sections(results, summary)
    title = f"Speculation bench: {results.body}" + (" (RAW ENDPOINT)" if results.raw else "")
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in pictures.items():
        (folder / name).write_bytes(png)
    (folder / "report.md").write_text(markdown(title, parts, pictures), "utf-8")
    (folder / "report.html").write_text(page(title, parts, pictures, summary), "utf-8")
    (folder / "results.json").write_text(dumps(results, summary), "utf-8")
    return summary


def compare(a: Results, b: Results, names: tuple[str, str] = ("A", "B")) -> str:
    """B against A as Markdown: the same arm, n, workload, temperature and concurrency, by prompt.

    A prompt whose text is not the same in both runs is another prompt, whatever its id. Arms that
    were refused in either run have neither speed nor acceptance in it, and degenerate answers of
    the others are left out. Two runs are not interleaved, so the
    machine's state differs between them: the text says so.
    """
    summaries = summarise(a), summarise(b)
    refused = {(r["arm"], r["n"]) for s in summaries for r in s["refused"]}
    bad: dict[_Key, set[str]] = defaultdict(set)
    for c in (c for s in summaries for c in s["cells"]):
        bad[_key(c)] |= set(c["verdict"]["bad"])
    others = {i for i in a.prompts if b.prompts.get(i, a.prompts[i]) != a.prompts[i]}
    left, right = _cells(a), _cells(b)
    out = [
        f"# {names[1]} against {names[0]}",
        "The runs were made one after the other, not interleaved: a ratio of speeds holds the "
        "machine's drift between them. Acceptance does not depend on that.",
    ]
    if a.raw or b.raw:
        out.append("RAW ENDPOINT in one of the runs: asked without a chat template.")
    out += [f"- {line}" for line in _unlike(a, b)]
    if others:
        out.append(f"{len(others)} prompts have the same id but another text: not compared.")
    common = [key for key in left if key in right]
    if not common:
        out.append("No arm, workload, temperature and concurrency is in both runs.")
    for key in common:
        arm, n, workload, temperature, concurrency = key
        where = f"{arm}, n = {n}" if n else arm
        out.append(f"## {where}; {workload}, T = {temperature:g}, {concurrency} at once")
        out += _compare_cell(left[key], right[key], (arm, n) in refused, others | bad[key])
    only = [k for k in (*left, *right) if (k in left) != (k in right)]
    if only:
        out.append(
            "In one run only: " + "; ".join(f"{k[0]}, n = {k[1]}, {k[2]}" for k in only) + "."
        )
    return "\n\n".join(out) + "\n"


def _key(cell: dict[str, Any]) -> _Key:
    return cell["arm"], cell["n"], cell["workload"], cell["temperature"], cell["concurrency"]


def _cells(results: Results) -> dict[_Key, dict[str, RequestRow]]:
    """First row of each prompt in each cell; synthetic arms are left out."""
    synthetic = {(s.name, s.n) for s in results.arms if s.synthetic}
    found: dict[_Key, dict[str, RequestRow]] = {}
    for r in results.requests:
        if (r.arm, r.n) not in synthetic:
            key = (r.arm, r.n, r.workload, r.temperature, r.concurrency)
            found.setdefault(key, {}).setdefault(r.prompt_id, r)
    return found


def _compare_cell(
    a: dict[str, RequestRow], b: dict[str, RequestRow], refused: bool, without: set[str]
) -> list[str]:
    if refused:
        return ["REFUSED in one of the runs (degenerate answers): nothing is compared."]
    ids = sorted((set(a) & set(b)) - without)
    if len(ids) < 2:
        return ["No two prompts in common."]
    x, y = [a[i] for i in ids], [b[i] for i in ids]
    lines = []
    if unlike := other_prompts(y, x):
        lines.append(
            f"NOT COMPARED in speed: {len(unlike)} of {len(ids)} prompts have another number of "
            "tokens (another chat template or tokenizer)."
        )
    else:
        try:
            seen = stats.rate_ratio(
                [r.completion_tokens for r in y], [r.seconds for r in y],
                [r.completion_tokens for r in x], [r.seconds for r in x],
            )  # fmt: skip
            lines.append(wording.describe_ratio("Speed", seen))
        except StatsError as e:
            lines.append(f"Speed: {e}")
    positions = min(min(len(r.accepted) for r in x), min(len(r.accepted) for r in y))
    if positions and all(r.drafts for r in (*x, *y)):
        differences = stats.acceptance_difference(
            [r.drafts for r in y], [r.accepted[:positions] for r in y],
            [r.drafts for r in x], [r.accepted[:positions] for r in x],
        )  # fmt: skip
        lines += [
            wording.describe_difference(f"Acceptance at position {k}", d)
            for k, d in enumerate(differences)
        ]
    same = sum(p.text == q.text for p, q in zip(x, y, strict=True))
    lines.append(f"{same} of {len(ids)} answers are the same text.")
    return lines


def _unlike(a: Results, b: Results) -> list[str]:
    """What differs between the runs besides what was measured."""
    pairs = {
        "endpoint": (a.endpoint, b.endpoint),
        "body": (a.body, b.body),
        "settings": (a.settings, b.settings),
        **{
            key: (a.made_with.get(key), b.made_with.get(key))
            for key in ("versions", "processor", "gpu", "cores", "commit")
        },
    }
    return [f"{key} differs: {x} -> {y}" for key, (x, y) in pairs.items() if x != y]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 2 with one sentence for files that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", nargs="+", type=Path, help="one results.json, or two")
    parser.add_argument("--out", type=Path, help="folder for the report (default: the file's)")
    options = parser.parse_args(arguments)
    try:
        runs = [load(path) for path in options.results]
        if len(runs) > 2:
            raise ResultsError(f"Give one file to render or two to compare, not {len(runs)}.")
        if len(runs) == 2:
            first, second = map(str, options.results)
            print(compare(runs[0], runs[1], (first, second)), end="")
            return 0
        folder = options.out or options.results[0].parent
        write_report(runs[0], folder)
        print(f"Wrote {folder / 'report.md'} and {folder / 'report.html'}.")
    except (ResultsError, OSError) as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
