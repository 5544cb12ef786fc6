"""What the miniature shows, or fails to show: one table, as text, JSON and PNG.

The question is the published one: how much acceptance does a drafter made for the vanilla body lose
on the abliterated one, where, and how much comes back by fine-tuning it on that body's own words?
The verdict is computed from stated thresholds and is written down whichever way it falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement
from recipes import environment
from recipes.bench_stage import NO_SPECULATION

A_VANILLA = "A on vanilla"
A_ABLITERATED = "A on abliterated"
B_ABLITERATED = "B on abliterated"
DRAFTERS = (A_VANILLA, A_ABLITERATED, B_ABLITERATED)

# Acceptance points (mean over positions) that must be lost before we speak of decay, and the
# share of the lost points that must come back before we speak of recovery.
DECAY = 0.10
RECOVERY = 0.50
SCHEMA = 1


def summarise(
    measured: Sequence[Measurement], bodies: dict[str, Any], n: int, validation: dict[str, Any]
) -> dict[str, Any]:
    """The miniature's result as plain data.

    Args:
        measured: all arms; drafter B at several n, drafter A at `n` only.
        bodies: manifest of the `bodies` stage (refusals and right answers of both bodies).
        n: drafted tokens a step at which the drafters are compared.
        validation: upstream's own validation metrics, by drafter.
    """
    rows = [
        {
            "arm": m.arm,
            "n": m.n,
            "kind": m.kind,
            "temperature": m.temperature,
            "prompts": m.prompts,
            "tokens": m.tokens,
            "drafts": m.drafts,
            "acceptance": [round(a, 4) for a in m.acceptance],
            "tokens_per_step": round(m.tokens_per_step, 3) if m.tokens_per_step else None,
            "tokens_per_s": round(m.tokens_per_s, 1),
            "hit_token_limit": m.hit_token_limit,
        }
        for m in measured
    ]
    return {
        "schema": SCHEMA,
        "made_with": environment.describe(),
        "n": n,
        "bodies": {
            kind: {key: bodies[kind].get(key) for key in ("seed", "harmless", "refused")}
            for kind in ("vanilla", "abliterated")
        },
        "validation": validation,
        "rows": rows,
        "speed": _speed(measured),
        "same_text": _same_text(measured),
        "verdict": _verdict(rows, n),
    }


def _speed(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """tok/s of drafter B over the same body without speculation, both kinds together."""

    def rate(arm: str, n: int, temperature: float) -> float:
        chosen = [m for m in measured if (m.arm, m.n, m.temperature) == (arm, n, temperature)]
        return sum(m.tokens for m in chosen) / sum(m.seconds for m in chosen)

    found = []
    for temperature in sorted({m.temperature for m in measured}):
        for n in sorted({m.n for m in measured if m.arm == B_ABLITERATED}):
            base = rate(NO_SPECULATION, 0, temperature)
            mine = rate(B_ABLITERATED, n, temperature)
            found.append(
                {
                    "temperature": temperature,
                    "n": n,
                    "tokens_per_s": round(mine, 1),
                    "without_speculation": round(base, 1),
                    "ratio": round(mine / base, 3),
                }
            )
    return found


def _same_text(measured: Sequence[Measurement]) -> dict[str, dict[str, int]]:
    """At T = 0, how many answers of each arm on the abliterated body equal the plain body's."""
    plain = {
        a.prompt_id: a.text
        for m in measured
        if m.arm == NO_SPECULATION and m.temperature == 0
        for a in m.answers
    }
    found: dict[str, dict[str, int]] = {}
    for m in measured:
        if m.temperature == 0 and m.arm in (A_ABLITERATED, B_ABLITERATED):
            tally = found.setdefault(f"{m.arm}, n = {m.n}", {"equal": 0, "prompts": 0})
            tally["equal"] += sum(plain.get(a.prompt_id) == a.text for a in m.answers)
            tally["prompts"] += len(m.answers)
    return found


def _verdict(rows: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """Decay and recovery for each kind and temperature, with the sentence that says it."""

    def mean(arm: str, kind: str, temperature: float) -> float:
        row = next(
            r
            for r in rows
            if (r["arm"], r["n"], r["kind"], r["temperature"]) == (arm, n, kind, temperature)
        )
        return sum(row["acceptance"]) / n

    found = []
    for temperature in sorted({r["temperature"] for r in rows}):
        for kind in sorted({r["kind"] for r in rows}):
            before = mean(A_VANILLA, kind, temperature)
            after = mean(A_ABLITERATED, kind, temperature)
            tuned = mean(B_ABLITERATED, kind, temperature)
            lost, back = before - after, tuned - after
            decay = lost >= DECAY
            recovery = decay and back >= RECOVERY * lost
            what = f"{kind} prompts, T = {temperature}: "
            if not decay:
                text = (
                    f"no decay shown ({before:.3f} on the vanilla body, {after:.3f} on the "
                    f"abliterated one), so nothing to recover; after fine-tuning {tuned:.3f}"
                )
            elif recovery:
                text = (
                    f"mean acceptance fell from {before:.3f} to {after:.3f} with abliteration; "
                    f"fine-tuning brought it to {tuned:.3f}"
                )
            else:
                text = (
                    f"mean acceptance fell from {before:.3f} to {after:.3f}, and fine-tuning did "
                    f"NOT bring half of it back ({tuned:.3f})"
                )
            found.append(
                {
                    "kind": kind,
                    "temperature": temperature,
                    "a_vanilla": round(before, 4),
                    "a_abliterated": round(after, 4),
                    "b_abliterated": round(tuned, 4),
                    "decay": decay,
                    "recovery": recovery,
                    "text": what + text,
                }
            )
    return found


def show(summary: dict[str, Any], console: Any) -> None:
    """Print the table and the verdict."""
    from rich.table import Table

    n = summary["n"]
    table = Table(title=f"Acceptance by position, n = {n} (held-out prompts)")
    for head in ("drafter", "prompts", "T", *(f"pos {k}" for k in range(n)), "tokens/step"):
        table.add_column(head, justify="left" if head in ("drafter", "prompts") else "right")
    for row in summary["rows"]:
        if row["arm"] in DRAFTERS and row["n"] == n:
            table.add_row(
                row["arm"],
                f"{row['kind']} ({row['prompts']})",
                f"{row['temperature']:g}",
                *(f"{a:.3f}" for a in row["acceptance"]),
                f"{row['tokens_per_step']:.2f}",
            )
    console.print(table)
    speed = Table(title="tok/s of drafter B, one request at a time (ratio to no speculation)")
    speed.add_column("T", justify="right")
    ns = sorted({s["n"] for s in summary["speed"]})
    speed.add_column("n = 0", justify="right")
    for k in ns:
        speed.add_column(f"n = {k}", justify="right")
    for temperature in sorted({s["temperature"] for s in summary["speed"]}):
        chosen = [s for s in summary["speed"] if s["temperature"] == temperature]
        speed.add_row(
            f"{temperature:g}",
            f"{chosen[0]['without_speculation']:.0f}",
            *(f"{s['tokens_per_s']:.0f} ({s['ratio']:.2f}x)" for s in chosen),
        )
    console.print(speed)
    for verdict in summary["verdict"]:
        console.print(verdict["text"], markup=False, highlight=False)
    for arm, tally in summary["same_text"].items():
        console.print(
            f"T = 0, {arm}: {tally['equal']} of {tally['prompts']} answers equal to those without "
            "speculation",
            markup=False,
            highlight=False,
        )


def draw(summary: dict[str, Any], path: Path) -> None:
    """The acceptance curves of the three drafters, one panel a kind and temperature."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = summary["n"]
    kinds = sorted({r["kind"] for r in summary["rows"]})
    temperatures = sorted({r["temperature"] for r in summary["rows"]})
    titles = {"harmless": "Harmless prompts", "refused": "Formerly refused prompts"}
    colours = dict(zip(DRAFTERS, ("#4c78a8", "#d62728", "#2a9d3a"), strict=True))
    marks = dict(zip(DRAFTERS, ("o", "s", "D"), strict=True))
    figure, axes = plt.subplots(
        len(temperatures), len(kinds), figsize=(10, 3.6 * len(temperatures)), squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for i, temperature in enumerate(temperatures):
        for j, kind in enumerate(kinds):
            axis = axes[i][j]
            for row in summary["rows"]:
                key = (row["n"], row["kind"], row["temperature"])
                if row["arm"] not in DRAFTERS or key != (n, kind, temperature):
                    continue
                axis.plot(
                    range(n), [100 * a for a in row["acceptance"]], marker=marks[row["arm"]],
                    color=colours[row["arm"]], label=f"{row['arm']}: {row['tokens_per_step']:.2f} "
                    "tokens/step",
                )  # fmt: skip
                axis.set_title(f"{titles.get(kind, kind)}, T = {temperature:g} "
                               f"({row['prompts']} held out)", fontsize=11)  # fmt: skip
            axis.set_ylim(-3, 103)
            axis.set_xticks(range(n))
            axis.grid(alpha=0.3)
            axis.legend(fontsize=9, loc="best")
            if j == 0:
                axis.set_ylabel("accepted drafts, %")
            if i == len(temperatures) - 1:
                axis.set_xlabel("draft position")
    figure.suptitle(
        "Miniature Gemma 4: drafter A made for the vanilla body, B fine-tuned for the abliterated",
        fontsize=12,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
