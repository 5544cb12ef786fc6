"""expected_acceptance: validation's expect_k, recomputed from the definition by slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

T = 0.7


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    weights = [math.exp((value - top) / T) for value in row]
    return [weight / sum(weights) for weight in weights]


def by_hand(seen: dict[str, Any], spoken: list[int] | None) -> list[tuple[float, int]]:
    """(sum, count) a position: the product of min(1, q / p) of the text's tokens."""
    text, mask = seen["text"], seen["mask"]
    counts = [[0.0, 0] for _ in seen["q"]]
    for start in range(len(text)):
        standing = 1.0
        for step, logits in enumerate(seen["q"]):
            target = start + 1 + step
            if target >= len(text) or not all(mask[start : target + 1]):
                break
            token = text[target]
            if spoken is not None and token not in spoken:
                standing = 0.0
            else:
                at = token if spoken is None else spoken.index(token)
                standing *= min(
                    1.0, softmax(logits[start])[at] / softmax(seen["p"][target - 1])[at]
                )
            counts[step][0] += standing
            counts[step][1] += 1
    return [(total, count) for total, count in counts]


@pytest.mark.parametrize(
    "version", [pytest.param("0.7.0.2", marks=pytest.mark.nightly), "0.8.1", "0.9.0"]
)
def test_validation_says_what_would_be_accepted(
    version: str, probe: Callable[[str, str], Any]
) -> None:
    seen = probe("expected", version)
    for name in ("full", "pruned"):
        before, after = seen["unpatched"][name], seen["patched"][name]
        assert not any(key.startswith("expect") for key in before["metrics"])
        assert not any(key.startswith("_") for key in after["metrics"]), "logits in the metrics"
        assert after["loss"] == before["loss"]
        expected = by_hand(after, seen["spoken"] if name == "pruned" else None)
        for step, (total, count) in enumerate(expected):
            assert after["metrics"][f"expect_{step}_sum"] == pytest.approx(total, rel=1e-4)
            assert after["metrics"][f"expect_{step}_total"] == count
        assert expected[0][0] > 0


@pytest.mark.parametrize("version", ["0.9.0"])
def test_a_training_step_reports_what_it_did(
    version: str, probe: Callable[[str, str], Any]
) -> None:
    seen = probe("expected", version)
    added = set(seen["patched"]["training"]["metrics"]) - set(
        seen["unpatched"]["training"]["metrics"]
    )
    assert {name.split("_")[0] for name in added} == {"accept"}
    assert seen["patched"]["training"]["loss"] == seen["unpatched"]["training"]["loss"]
