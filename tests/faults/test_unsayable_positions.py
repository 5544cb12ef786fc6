"""unsayable_positions: what the drafter cannot say teaches it nothing, where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from speculators_patches.patches.unsayable_positions import sayable


@pytest.mark.parametrize(
    "version", [pytest.param("0.7.0.2", marks=pytest.mark.nightly), "0.8.1", "0.9.0"]
)
def test_what_cannot_be_said_is_not_taught(version: str, probe: Callable[[str, str], Any]) -> None:
    """The drafter can say even ids. A text of odd ids teaches upstream's drafter all the same."""
    seen = probe("unsayable", version)
    upstream, masked = seen["upstream"], seen["mask"]
    assert upstream["odd"]["gradient"] > 1e-3
    # The last position of the batch has no next token and stays: its share of upstream's gradient.
    assert masked["odd"]["gradient"] != upstream["odd"]["gradient"]
    assert masked["even"]["loss"] == upstream["even"]["loss"]
    assert masked["even"]["gradient"] == upstream["even"]["gradient"]
    assert masked["mixed"]["loss"] != upstream["mixed"]["loss"]
    for text in ("odd", "even", "mixed"):
        for name, value in upstream[text]["metrics"].items():
            if name.startswith("accept_"):
                assert masked[text]["metrics"][name] == value, "acceptance counts every position"


def test_the_mask_looks_one_token_ahead() -> None:
    t2d = torch.tensor([1, 0, 1, 0])
    assert sayable(torch.tensor([[1, 0, 3, 2, 2]]), t2d).tolist() == [
        [True, False, True, True, True]
    ]
