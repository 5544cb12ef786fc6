"""Which position is compared with which: the sums of `evaluate` by naive loops over indices."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.predict import evaluate as evaluating
from benchmarks.predict import walk
from benchmarks.predict.answers import Answer
from benchmarks.predict.distributions import Sampling

VOCABULARY, SAYABLE, DEPTH = 11, [0, 2, 3, 5, 8], 3


class Given:
    """A body and a drafter whose logits are numbers written down beforehand."""

    def __init__(self, tokens: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.p = torch.randn(tokens, VOCABULARY, generator=random) * 2
        self.q = torch.randn(DEPTH, tokens - 1, len(SAYABLE), generator=random) * 2
        self.ids = torch.randint(0, VOCABULARY, (tokens,), generator=random)

    @property
    def body(self) -> Any:
        """Its states hold their own position, so that logits can be looked up."""

        def logits(last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            found = self.p[last[:, 0].long()]
            return found * 1.5, found

        return SimpleNamespace(head=torch.zeros(1), logits=logits)

    @property
    def drafter(self) -> Any:
        return SimpleNamespace(logits=lambda *_: list(self.q), sayable=torch.tensor(SAYABLE))


@pytest.mark.parametrize("chunk", [2, 256])
@pytest.mark.parametrize("beyond", [DEPTH, 0])
def test_positions_starts_and_depths(
    chunk: int, beyond: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluating, "CHUNK", chunk)
    start, end = 4, 10
    tokens = end + beyond
    given = Given(tokens, seed=beyond)
    answer = Answer("p", "w", 0.8, 0, tuple(given.ids.tolist()), start, end, "file")
    states = torch.arange(tokens).float()[:, None, None].expand(tokens, 2, 4)
    row = evaluating.evaluate(answer, states, given.drafter, given.body, Sampling(0.8), DEPTH)
    p = (given.p / 0.8).softmax(-1)
    q = (given.q / 0.8).softmax(-1)
    starts = end - start - 1
    assert row.starts == starts
    assert row.tokens == end - start
    greedy, overlap, hits = (np.zeros((starts, DEPTH)) for _ in range(3))
    ratio = np.full((starts, DEPTH), -np.inf)
    for k in range(DEPTH):
        for i in range(starts):
            known = start + i  # the last token that is known
            target = known + 1 + k
            if target >= tokens:
                continue
            drafted = q[k, known - 1]
            body = p[target - 1]
            best = SAYABLE[int(drafted.argmax())]
            text = int(given.ids[target])
            greedy[i, k] = body[best]
            overlap[i, k] = sum(
                min(float(body[v]), float(drafted[j])) for j, v in enumerate(SAYABLE)
            )
            hits[i, k] = best == text
            if text in SAYABLE:
                ratio[i, k] = float(drafted[SAYABLE.index(text)].log() - body[text].log())
    np.testing.assert_allclose(row.sums["greedy"], greedy.sum(0), rtol=1e-4)
    np.testing.assert_allclose(row.sums["overlap"], overlap.sum(0), rtol=1e-4)
    for n in range(1, DEPTH + 1):
        expected = walk.count(walk.standing(ratio[:, :n]))
        found = row.counts["probabilistic"][n - 1]
        np.testing.assert_allclose(
            [found.drafts, *found.accepted], [expected.drafts, *expected.accepted], rtol=1e-4
        )
        assert row.counts["greedy"][n - 1] == walk.count(hits[:, :n])
    raw = (given.p * 1.5)[start : end - 1].max(-1).values
    assert row.top == pytest.approx(raw.tolist())
