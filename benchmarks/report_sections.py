"""The report as a list of sections, rendered as Markdown or as one HTML file.

A section holds paragraphs and tables of cells; a cell that shows a number names where it stands in
results.json (`key`, e.g. "cells.3.speedup.value"), so that a test can compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.arm_verdict import MANY_CUT
from benchmarks.costs import OWN_STEPS
from benchmarks.schema import Results


@dataclass(frozen=True)
class Cell:
    """One table cell: what is shown, and the path in `summary` of the number it shows."""

    text: str
    key: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then an optional table, picture (by name), notes and code."""

    title: str
    paragraphs: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    picture: str = ""
    notes: tuple[str, ...] = ()
    code: tuple[str, ...] = field(default=())


def sections(results: Results, summary: dict[str, Any]) -> list[Section]:
    """All sections in order: what first could mislead comes first."""
    found = [_verdicts(results, summary), _speed(summary), _acceptance(summary)]
    found.append(_pairs(summary))
    found.append(_lossless(summary))
    found.append(_choices(summary))
    found.append(_break_even(summary))
    found.append(_made_with(results))
    return [s for s in found if s.paragraphs or s.rows or s.notes or s.code]


def _verdicts(results: Results, summary: dict[str, Any]) -> Section:
    lines = []
    if results.raw:
        lines.append(
            "RAW ENDPOINT: these prompts were sent without a chat template (--raw). What is "
            "measured here is not how the model answers; do not publish it as that."
        )
    for arm in summary["server_refused"]:
        lines.append(f"{arm['arm']}, n = {arm['n']}: the server refused: {arm['why']}")
    code = []
    for c in summary["cells"]:
        where = (
            f"{c['label']} ({c['workload']}, T = {c['temperature']:g}, {c['concurrency']} at once)"
        )
        verdict = c["verdict"]
        if c.get("other_prompts"):
            lines.append(f"{where}: {c['speed_words']}")
        if verdict["status"] == "ok" and verdict["cut_by_limit"] >= MANY_CUT * verdict["answers"]:
            lines.append(
                f"{where}: the token limit cut {verdict['cut_by_limit']} of {verdict['answers']} "
                "answers; whether they end is not known. Raise --max-tokens to see."
            )
        answers = c.get("lossless") or c.get("distribution") or {}
        if answers.get("changes_answers"):
            lines.append(f"{where}: NOT THE SAME ANSWERS as without speculation. {answers['text']}")
        if verdict["status"] != "ok":
            lines.append(f"{where}: {verdict['text']}")
            code += [f"{where}, {e['prompt_id']}:\n{e['excerpt']}" for e in verdict["examples"]]
    if not any(c["refused"] for c in summary["cells"]):
        lines.append(
            "All arms passed the text checks: in none were more than 2 % of the answers degenerate "
            f"({sum(c['requests'] for c in summary['cells'])} answers read)."
        )
    return Section("Can these numbers be believed?", tuple(lines), code=tuple(code))


def _speed(summary: dict[str, Any]) -> Section:
    rows, words = [], []
    for k, c in enumerate(summary["cells"]):
        rows.append(
            (
                Cell(c["label"]), Cell(c["workload"]), Cell(f"{c['temperature']:g}"),
                Cell(str(c["concurrency"])), Cell(str(c["prompts"])),
                _number(c.get("tokens_per_s"), f"cells.{k}.tokens_per_s", ".1f", c["refused"]),
                _number(c.get("tokens_per_s_per_request"), f"cells.{k}.tokens_per_s_per_request",
                        ".1f", c["refused"]),
                *_interval(c.get("speedup"), f"cells.{k}.speedup", ".2f", c["refused"]),
                _number(c.get("ttft_s"), f"cells.{k}.ttft_s", ".3f"),
                _number(c.get("itl_s"), f"cells.{k}.itl_s", ".4f"),
            )
        )  # fmt: skip
        if "speed_words" in c:
            words.append(
                f"{c['workload']}, T = {c['temperature']:g}, {c['concurrency']} at once: "
                f"{c['speed_words']}"
            )
    return Section(
        "Speed",
        (
            "Ratios are to no speculation, paired by prompt, with 95 % intervals."
            + _of_many(len(words)),
        ),
        ("arm", "workload", "T", "at once", "prompts", "tok/s", "of a prompt", "ratio", "low",
         "high", "first token, s", "between tokens, s"),
        tuple(rows),
        "tokens_per_s.png",
        tuple(words),
    )  # fmt: skip


def _of_many(intervals: int) -> str:
    """What many intervals do to the surest of them."""
    if intervals < 10:
        return ""
    return (
        f" There are {intervals}: about {intervals / 20:.0f} of such intervals miss the truth by "
        "chance, so look for what holds in neighbouring lines."
    )


def _acceptance(summary: dict[str, Any]) -> Section:
    rows = []
    for k, c in enumerate(summary["cells"]):
        label = c["label"] + (" (REFUSED: degenerate text)" if c["refused"] else "")
        for position, seen in enumerate(c.get("acceptance", ())):
            path = f"cells.{k}.acceptance.{position}"
            conditional = c["conditional"][position] or {}
            rows.append(
                (
                    Cell(label), Cell(c["workload"]), Cell(f"{c['temperature']:g}"),
                    Cell(str(c["concurrency"])), Cell(str(position)),
                    *_interval(seen, path, ".3f"),
                    _number(conditional.get("value"), f"cells.{k}.conditional.{position}.value",
                            ".3f"),
                    _number(c["tokens_per_step"]["value"], f"cells.{k}.tokens_per_step.value",
                            ".2f") if position == 0 else Cell(""),
                )
            )  # fmt: skip
    return Section(
        "Acceptance by position",
        ("Unconditional, as vLLM counts it: drafts accepted up to this position, of all drafts. "
         "Conditional: of those accepted up to the position before.",) if rows else (),
        ("arm", "workload", "T", "at once", "position", "accepted", "low", "high", "conditional",
         "tokens a step"),
        tuple(rows),
        "acceptance.png",
    )  # fmt: skip


def _pairs(summary: dict[str, Any]) -> Section:
    rows, words = [], []
    for k, pair in enumerate(summary["pairs"]):
        where = f"{pair['workload']}, T = {pair['temperature']:g}, {pair['concurrency']} at once"
        # The first position is what a drafter knows of this text; the rest is in the table.
        words.append(f"{where}: {pair['words'][0]}")
        for position, seen in enumerate(pair["acceptance"]):
            rows.append(
                (
                    Cell(f"{pair['arm']} - {pair['against']}"), Cell(str(pair["n"])),
                    Cell(pair["workload"]), Cell(f"{pair['temperature']:g}"),
                    Cell(str(pair["concurrency"])), Cell(str(position)),
                    *_interval(seen, f"pairs.{k}.acceptance.{position}", "+.3f"),
                )
            )  # fmt: skip
    return Section(
        "Drafters compared",
        ("Difference of unconditional acceptance on the same prompts, with 95 % intervals; the "
         "notes are for position 0.",) if rows else (),
        ("arms", "n", "workload", "T", "at once", "position", "difference", "low", "high"),
        tuple(rows),
        notes=tuple(words),
    )  # fmt: skip


def _lossless(summary: dict[str, Any]) -> Section:
    lines = [
        f"{c['label']}, {c['workload']}, T = {c['temperature']:g}, {c['concurrency']} at once: "
        f"{(c.get('lossless') or c['distribution'])['text']}"
        for c in summary["cells"]
        if c.get("lossless") or c.get("distribution")
    ]
    return Section("Does speculation change the answers?", notes=tuple(lines))


def _choices(summary: dict[str, Any]) -> Section:
    lines, code = [], []
    for choice in summary["choices"]:
        for point in choice["points"]:
            n = f"n = {point['n']}: " if point["n"] else ""
            lines.append(
                f"{choice['arm']}, {choice['workload']}, T = {choice['temperature']:g}, "
                f"{point['concurrency']} at once: {n}{point['reason']}"
            )
        if choice["speculative_config"] is not None:
            code.append(choice["flag"])
    return Section("What to serve with", notes=tuple(lines), code=tuple(dict.fromkeys(code)))


def _break_even(summary: dict[str, Any]) -> Section:
    rows = []
    for k, cost in enumerate(summary["costs"]):
        needed = cost["needed"]
        rows.append(
            (
                Cell(cost["arm"]), Cell(str(cost["n"])), Cell(str(cost["concurrency"])),
                _number(cost["base_s"], f"costs.{k}.base_s", ".5f"),
                _number(cost["verify_s"], f"costs.{k}.verify_s", ".5f"),
                _number(cost["draft_s"] or None, f"costs.{k}.draft_s", ".5f"),
                Cell("never") if needed is None else _number(needed, f"costs.{k}.needed", ".3f"),
            )
        )  # fmt: skip
    sources = ", ".join(dict.fromkeys(c["how"] for c in summary["costs"]))
    words: tuple[str, ...] = (
        "Speedup = (1 + c + ... + c^n) * plain step / (verify + draft), for a conditional "
        "acceptance c at every position; the last column is the c at which it is 1.",
        f"Timed with: {sources}. Where drafting is -, only the whole step could be timed, and it "
        "stands under verify.",
    )
    if any(c["how"].startswith(OWN_STEPS) for c in summary["costs"]):
        words += (
            "NOT timed with synthetic acceptance: these are steps of the drafters measured above, "
            "at the acceptance that they had.",
        )
    return Section(
        "Break-even on this machine",
        words if rows else (),
        ("arm", "n", "at once", "plain step, s", "verify, s", "draft, s", "acceptance needed"),
        tuple(rows),
        "break_even.png",
    )


def _made_with(results: Results) -> Section:
    made = results.made_with
    versions = ", ".join(f"{k} {v}" for k, v in made.get("versions", {}).items())
    lines = [
        f"Body: {results.body}. Endpoint: {results.endpoint}. Made: {results.created}.",
        f"Hardware: {made.get('gpu') or 'no GPU'}; {made.get('processor')}, "
        f"{made.get('cores')} cores. Versions: {versions}. Commit: {made.get('commit')}.",
        f"Settings: {results.settings}. Schema version {results.schema_version}.",
    ]
    for a in results.arms:
        where = f" on {a.body}" if a.body else ""
        flags = f", flags {' '.join(a.server_flags)}" if a.server_flags else ""
        doubt = " (experimental)" if a.experimental else ""
        lines.append(f"{a.key}{where}{doubt}: {a.speculative_config or 'plain'}{flags}")
    return Section("Made with", tuple(lines))


def _number(value: float | None, key: str, form: str, refused: bool = False) -> Cell:
    if value is None:
        return Cell("refused" if refused else "-")
    return Cell(format(value, form), key)


def _interval(
    seen: dict[str, Any] | None, key: str, form: str, refused: bool = False
) -> Sequence[Cell]:
    values = seen or {}
    return [
        _number(values.get(part), f"{key}.{part}", form, refused)
        for part in ("value", "low", "high")
    ]
