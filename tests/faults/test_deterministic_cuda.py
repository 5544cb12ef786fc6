"""deterministic_cuda: what upstream's flag reaches, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.compat import running

ASK = """
import json, os, sys
from speculators_patches import apply
apply(only=sys.argv[2:])
import torch
from speculators.train.cli import set_seed
set_seed(3, sys.argv[1] == "deterministic")
try:
    torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))  # no order is defined
    raised = False
except RuntimeError:
    raised = True
print(json.dumps({
    "raised": raised, "mode": torch.are_deterministic_algorithms_enabled(),
    "cudnn": torch.backends.cudnn.deterministic,
    "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"), "drawn": torch.rand(1).item(),
}))
"""
LAID_OUT = Callable[[str], Path]


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_the_flag_reaches_every_operation(version: str, laid_out: LAID_OUT) -> None:
    laid_out(version)
    unpatched = running.last_json(running.python(version, "-c", ASK, "deterministic"))
    assert unpatched["cudnn"]
    assert not unpatched["mode"]
    assert not unpatched["raised"]
    patched = running.last_json(
        running.python(version, "-c", ASK, "deterministic", "deterministic_cuda")
    )
    assert patched["cudnn"]
    assert patched["mode"]
    assert patched["raised"]
    assert patched["workspace"] == ":4096:8"
    assert patched["drawn"] == unpatched["drawn"]


def test_a_workspace_that_was_chosen_stays_and_without_the_flag_nothing_changes(
    laid_out: LAID_OUT,
) -> None:
    laid_out("0.9.0")
    chosen = running.python(
        "0.9.0", "-c", ASK, "deterministic", "deterministic_cuda",
        env={"CUBLAS_WORKSPACE_CONFIG": ":16:8"},
    )  # fmt: skip
    assert running.last_json(chosen)["workspace"] == ":16:8"
    plain = running.last_json(running.python("0.9.0", "-c", ASK, "any", "deterministic_cuda"))
    assert not plain["mode"]
    assert not plain["raised"]
    assert plain["workspace"] is None
