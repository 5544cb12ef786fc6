"""The README's table of the miniature, written from the result file so that the two cannot differ.

python -m recipes.miniature.readme_table          # rewrites README.md from benchmarks/results
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "miniature.json"
BEGIN, END = "<!-- miniature table -->", "<!-- end of miniature table -->"


def table(summary: dict[str, Any]) -> str:
    """Markdown: acceptance by position of the three drafters, and drafter B's tok/s ratios."""
    n = summary["n"]
    lines = [
        "| drafter on body | held-out prompts | T | " + " | ".join(f"pos {k}" for k in range(n))
        + " | tokens a step |",
        "|---" * (n + 4) + "|",
    ]  # fmt: skip
    for row in summary["rows"]:
        if row["n"] == n:
            values = " | ".join(f"{a:.3f}" for a in row["acceptance"])
            lines.append(
                f"| {row['arm']} | {row['prompts']} {row['kind']} | {row['temperature']:g} | "
                f"{values} | {row['tokens_per_step']:.2f} |"
            )
    same = sum(tally["equal"] for tally in summary["same_text"].values())
    asked = sum(tally["prompts"] for tally in summary["same_text"].values())
    ratios = ", ".join(
        f"{s['ratio']:.2f} at n = {s['n']}" for s in summary["speed"] if s["temperature"] == 0
    )
    lines += [
        "",
        f"tok/s of drafter B over no speculation in the same run, T = 0: {ratios}. At T = 0, "
        f"{same} of {asked} answers given with a drafter on the abliterated body were, letter for "
        "letter, those given without.",
    ]
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README's text with the table of the committed result in its place."""
    head, rest = readme.split(BEGIN)
    _, tail = rest.split(END)
    summary = json.loads(RESULT.read_text("utf-8"))
    return f"{head}{BEGIN}\n{table(summary)}\n{END}{tail}"


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text("utf-8")), encoding="utf-8")
