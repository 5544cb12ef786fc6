"""accuracy_denominators: upstream's metrics and drafter; acceptance against replayed decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speculators_patches.patches import accuracy_denominators

VERSIONS = ["0.7.0.2", "0.8.1", "0.9.0"]


def replay(text: list[int], mask: list[bool], said: list[list[int]]) -> list[tuple[int, int]]:
    """(accepted, drafted) a position, as vLLM counts them, for a verifier that writes `text`.

    From every reply token the drafter says `said[k][i]` for the k-th token after it; the verifier
    accepts up to the first that is not its own. Drafts that leave the reply are not counted.
    """
    counts = [[0, 0] for _ in said]
    for start in range(len(text)):
        standing = True
        for step, tokens in enumerate(said):
            target = start + 1 + step
            if target >= len(text) or not all(mask[start : target + 1]):
                break
            standing = standing and tokens[start] == text[target]
            counts[step][0] += standing
            counts[step][1] += 1
    return [(accepted, drafted) for accepted, drafted in counts]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_perfect_drafter_reads_one(version: str, probe: Callable[[str, str], Any]) -> None:
    seen = probe("accuracy", version)
    unpatched = seen["unpatched"]["perfect"]
    for name in ("full_acc", "cond_acc"):
        assert unpatched[f"{name}_1"] < 0.97
        assert unpatched[f"{name}_2"] < 0.97
    assert set(seen["patched"]["perfect"]) == set(unpatched)
    assert set(seen["patched"]["perfect"].values()) == {1.0}


@pytest.mark.parametrize("version", VERSIONS)
def test_acceptance_is_over_the_full_vocabulary(
    version: str, probe: Callable[[str, str], Any]
) -> None:
    """The drafter can say even ids only; every odd one in the text counts as wrong."""
    before = probe("accuracy", version)["unpatched"]["drafter"]
    seen = probe("accuracy", version)["patched"]["drafter"]
    assert seen["loss"] == before["loss"]
    assert not any(name.startswith("accept") for name in before["metrics"])
    expected = replay(seen["text"], seen["mask"], seen["said"])
    first, second = expected[:2]
    assert 0 < second[0] <= first[0] < first[1], "a text that the drafter sometimes gets right"
    assert any(token % 2 for token, reply in zip(seen["text"], seen["mask"], strict=True) if reply)
    for step, (accepted, drafted) in enumerate(expected):
        assert seen["metrics"][f"accept_{step}_sum"] == accepted
        assert seen["metrics"][f"accept_{step}_total"] == drafted


@given(st.data(), st.integers(1, 24), st.integers(1, 4))
def test_acceptance_is_what_a_replay_of_decoding_counts(
    data: st.DataObject, length: int, steps: int
) -> None:
    spoken = sorted(data.draw(st.sets(st.integers(0, 5), min_size=1)))
    text = data.draw(st.lists(st.integers(0, 5), min_size=length, max_size=length))
    mask = data.draw(st.lists(st.booleans(), min_size=length, max_size=length))
    draft = st.lists(st.integers(0, len(spoken) - 1), min_size=length, max_size=length)
    drafted = [data.draw(draft) for _ in range(steps)]
    counted = accuracy_denominators.acceptance(
        [torch.tensor([row]) for row in drafted],
        torch.tensor([text]),
        torch.tensor([mask]),
        torch.tensor([full - index for index, full in enumerate(spoken)]),
    )
    expected = replay(text, mask, [[spoken[index] for index in row] for row in drafted])
    for step, (accepted, total) in enumerate(expected):
        assert counted[f"accept_{step}_sum"] == accepted
        assert counted[f"accept_{step}_total"] == total
    rates = [accepted for accepted, _ in expected]
    assert rates == sorted(rates, reverse=True), "acceptance never rises with the position"
