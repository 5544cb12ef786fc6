"""The arms of `benchmarks.transfer`, and what `plan`'s model foretells of them. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from recipes.config import resolve
from recipes.spread.model import bounds, of_parts
from recipes.spread.placement import place

TRANSFERS = ("file", "mooncake")
COUNTS = (1, 2)


@dataclass(frozen=True)
class Arm:
    """How many work at once, and what lies between them.

    Attributes:
        producers: vLLM servers; 0: trainers alone, on samples that they hold in memory.
        trainers: ranks; 0: samples are read and thrown away.
        transfer: "" where nothing is carried.
    """

    producers: int
    trainers: int
    transfer: str = ""

    @property
    def name(self) -> str:
        parts = [
            f"{count} {what}{'s' if count > 1 else ''}"
            for count, what in ((self.producers, "producer"), (self.trainers, "trainer"))
            if count
        ]
        return ", ".join([*parts, *([self.transfer] if self.transfer else [])])


ALONE = [Arm(0, count) for count in COUNTS]
READ = [Arm(count, 0, transfer) for transfer in TRANSFERS for count in COUNTS]
WHOLE = [
    Arm(producers, trainers, transfer)
    for transfer in TRANSFERS
    for producers in COUNTS
    for trainers in COUNTS
]
ARMS = [*ALONE, *READ, *WHOLE]


def summary(rates: dict[Arm, list[float]]) -> list[dict[str, Any]]:
    """Each arm's samples/s, and its ratio to one producer and one trainer with files, by round."""
    base = rates[Arm(1, 1, "file")]
    rows = []
    for arm, found in rates.items():
        ratios = [x / y for x, y in zip(found, base, strict=True)]
        rows.append(
            {
                "producers": arm.producers,
                "trainers": arm.trainers,
                "transfer": arm.transfer,
                "samples_s": [round(one, 3) for one in found],
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(one, 3) for one in ratios],
            }
        )
    return rows


def predictions(
    rows: Iterable[dict[str, Any]], tokens: int, gradient_bytes: int
) -> list[dict[str, Any]]:
    """The model's samples/s for every arm with producers, and its error.

    It has seen the trainers alone and one producer alone; `fitted` says which rows that is.
    """
    measured = {
        Arm(row["producers"], row["trainers"], row["transfer"]): statistics.median(row["samples_s"])
        for row in rows
    }
    alone = {count: count / measured[Arm(0, count)] for count in COUNTS}  # seconds a step
    out = []
    for arm in (*READ, *WHOLE):
        one = measured[Arm(1, 0, arm.transfer)]
        if arm.trainers:
            rates = of_parts(tokens, alone[1], alone[2], gradient_bytes, one * tokens)
            settings = [f"producers={arm.producers}", f"trainers={arm.trainers}",
                        f"host_gpus={arm.producers + arm.trainers}"]  # fmt: skip
            first = bounds(rates, place(resolve("h100", None, settings)[0]), tokens)[0]
            told, what = first.tokens_s / tokens, first.what
        else:
            told, what = arm.producers * one, "producers"
        out.append(
            {
                "producers": arm.producers,
                "trainers": arm.trainers,
                "transfer": arm.transfer,
                "samples_s": round(measured[arm], 3),
                "model_samples_s": round(told, 3),
                "held_back_by": what,
                "error": told / measured[arm] - 1,
                "fitted": arm == Arm(1, 0, arm.transfer),
            }
        )
    return out


def largest_error(told: Iterable[dict[str, Any]]) -> float:
    """On what the fit has not seen."""
    return max(abs(row["error"]) for row in told if not row["fitted"])


def table(rows: list[dict[str, Any]], told: list[dict[str, Any]]) -> str:
    """Markdown: measured samples/s and their ratios, medians over rounds with their range."""

    def of(source: list[dict[str, Any]], arm: Arm) -> dict[str, Any]:
        return next(
            row for row in source
            if (row["producers"], row["trainers"], row["transfer"])
            == (arm.producers, arm.trainers, arm.transfer)
        )  # fmt: skip

    lines = [
        "| producers | trainers | transfer | samples/s | of one and one with files "
        "| model's error | held back by |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in (*WHOLE, *READ, *ALONE):
        row = of(rows, arm)
        rate, ratio = _spread(row["samples_s"]), _spread(row["ratios"])
        counts = [str(count or "-") for count in (arm.producers, arm.trainers)]
        cells = [*counts, arm.transfer or "-", rate, ratio]
        if arm.producers:
            model = of(told, arm)
            error = "fitted" if model["fitted"] else f"{100 * model['error']:+.0f} %"
            cells += [error, model["held_back_by"]]
        else:
            cells += ["fitted", "trainers"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
