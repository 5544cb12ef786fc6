"""The report's pictures, as PNG bytes: acceptance by position, tok/s over n, break-even."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from benchmarks.break_even import StepCost, curve

_COLOURS = ("#4c78a8", "#d62728", "#2a9d3a", "#b279a2", "#f58518", "#54a24b", "#72b7b2", "#9d755d")
RAW = "RAW ENDPOINT, no chat template"
_MARKS = "osD^vPX*"


def draw_all(summary: dict[str, Any]) -> dict[str, bytes]:
    """PNG by file name; one without data is left out, and each says so if the endpoint was raw."""
    cells = summary["cells"]
    title = RAW if summary["endpoint"] == "raw" else ""
    pictures = {
        "acceptance.png": acceptance([c for c in cells if c.get("acceptance")], title),
        "tokens_per_s.png": speed([c for c in cells if c.get("tokens_per_s")], title),
        "break_even.png": break_even([StepCost.from_json(c) for c in summary["costs"]], title),
    }
    return {name: png for name, png in pictures.items() if png is not None}


def acceptance(cells: Sequence[dict[str, Any]], title: str = "") -> bytes | None:
    """Unconditional acceptance with 95 % intervals, one panel a workload, temperature, concurrency.

    Of each arm the deepest n is drawn: its first positions are those of a smaller n.
    """
    places = _places(cells)
    if not places:
        return None
    plt, figure, axes = _figure(len(places))
    for axis, (place, found) in zip(axes, places.items(), strict=False):
        deepest: dict[str, dict[str, Any]] = {}
        for cell in found:
            if cell["n"] > deepest.get(cell["arm"], {"n": 0})["n"]:
                deepest[cell["arm"]] = cell
        for k, cell in enumerate(deepest.values()):
            points = cell["acceptance"]
            values = [100 * p["value"] for p in points]
            below = [100 * max(0.0, p["value"] - p["low"]) for p in points]
            above = [100 * max(0.0, p["high"] - p["value"]) for p in points]
            axis.errorbar(
                [x + 0.04 * k for x in range(len(points))], values, yerr=[below, above], capsize=3,
                marker=_MARKS[k % len(_MARKS)], color=_COLOURS[k % len(_COLOURS)],
                label=cell["label"] + (" (REFUSED)" if cell["refused"] else ""),
                linestyle=":" if cell["refused"] else "-",
            )  # fmt: skip
        axis.set_xticks(range(max(len(c["acceptance"]) for c in deepest.values())))
        _finish(axis, place, "draft position", "accepted drafts, %")
        axis.set_ylim(-3, 103)
    return _png(plt, figure, title)


def speed(cells: Sequence[dict[str, Any]], title: str = "") -> bytes | None:
    """tok/s over n; the dashed line is no speculation. Refused arms are not in it."""
    places = _places(cells)
    if not places:
        return None
    plt, figure, axes = _figure(len(places))
    for axis, (place, found) in zip(axes, places.items(), strict=False):
        for cell in found:
            if cell["n"] == 0:
                axis.axhline(cell["tokens_per_s"], color="#555", linestyle="--", label=cell["arm"])
        for k, arm in enumerate(dict.fromkeys(c["arm"] for c in found if c["n"] > 0)):
            points = sorted((c["n"], c["tokens_per_s"]) for c in found if c["arm"] == arm)
            axis.plot(
                [n for n, _ in points], [y for _, y in points], label=arm,
                marker=_MARKS[k % len(_MARKS)], color=_COLOURS[k % len(_COLOURS)],
            )  # fmt: skip
        axis.set_xticks(sorted({c["n"] for c in found}))
        axis.set_ylim(bottom=0)
        _finish(axis, place, "drafted tokens a step (n)", "tok/s")
    return _png(plt, figure, title)


def break_even(costs: Sequence[StepCost], title: str = "") -> bytes | None:
    """Speedup over the conditional acceptance, one panel a concurrency, one line an n."""
    if not costs:
        return None
    concurrencies = sorted({c.concurrency for c in costs})
    plt, figure, axes = _figure(len(concurrencies))
    for axis, concurrency in zip(axes, concurrencies, strict=False):
        for k, cost in enumerate(c for c in costs if c.concurrency == concurrency):
            points = curve(cost)
            axis.plot(
                [100 * x for x, _ in points], [y for _, y in points],
                label=f"{cost.arm}, n = {cost.n}".lstrip(", "),
                color=_COLOURS[k % len(_COLOURS)],
            )  # fmt: skip
        axis.axhline(1, color="#555", linestyle="--", linewidth=1)
        how = next(c.how for c in costs if c.concurrency == concurrency).partition(" (")[0]
        axis.set_title(f"concurrency {concurrency}; timed: {how or 'unknown'}", fontsize=9)
        axis.set_xlabel("conditional acceptance at every position, %")
        axis.set_ylabel("speedup")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return _png(plt, figure, title)


def _places(cells: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    places: dict[str, list[dict[str, Any]]] = {}
    for c in cells:
        title = f"{c['workload']}, T = {c['temperature']:g}, concurrency {c['concurrency']}"
        places.setdefault(title, []).append(c)
    return places


def _figure(panels: int) -> tuple[Any, Any, list[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False
    )  # fmt: skip
    flat = list(axes.flat)
    for spare in flat[panels:]:
        spare.set_visible(False)
    return plt, figure, flat


def _finish(axis: Any, title: str, x: str, y: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _png(plt: Any, figure: Any, title: str) -> bytes:
    if title:
        figure.suptitle(title, color="#d62728", fontsize=10)
    figure.tight_layout()
    target = io.BytesIO()
    # Without the version in the file, the same data give the same bytes.
    figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return target.getvalue()
