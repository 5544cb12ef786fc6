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
# The real drafter, compiled by a backend that notes which of its graphs run.
STEPS = """
import json, sys
from speculators_patches import apply
apply(only=["cpu_training", *sys.argv[1:]])
import torch
from benchmarks.real_size import Size, Training, batch
from speculators.train.cli import set_seed
set_seed(3, deterministic=True)
graphs, ran = 0, []
def noting(graph, examples):
    global graphs
    graphs += 1
    number = graphs
    def run(*arguments):
        ran.append(number)
        return graph.forward(*arguments)
    return run
training = Training(Size(16, 128), "cpu", ttt_steps=5)
training.model.forward = torch.compile(training.model.forward, backend=noting)
data = batch(training.size, training.model, 0, 2)
steps = []
for step in range(3):
    ran.clear()
    training.step(data)
    steps.append(list(ran))
    training.model.eval()
    with torch.no_grad():
        training.loss(data)  # a validation between steps
    training.model.train()
print(json.dumps(steps))
"""
# P-EAGLE draws another number of positions at each step.
LENGTHS = """
import json
from speculators_patches import apply
apply(only=["deterministic_cuda"])
import torch
from speculators.models.peagle.core import PEagleDraftModel
from speculators.train.cli import set_seed
made = []
def noting(graph, examples):
    made.append(graph)
    return graph.forward
PEagleDraftModel.forward = torch.compile(lambda self, keys: keys.sum(), backend=noting)
for _ in range(2):
    set_seed(3, deterministic=True)
for length in range(2, 90):
    PEagleDraftModel.forward(None, torch.zeros(length))
print(json.dumps(len(made)))
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


def test_a_process_first_step_runs_the_compiled_code_of_every_later_one(
    laid_out: LAID_OUT,
) -> None:
    laid_out("0.9.0")
    first, second, third = running.last_json(running.python("0.9.0", "-c", STEPS))
    assert first != second == third  # what a resumed run repeats otherwise
    first, second, third = running.last_json(
        running.python("0.9.0", "-c", STEPS, "deterministic_cuda")
    )
    assert first == second == third
    assert len(first) > 5


@pytest.mark.parametrize("version", ["0.8.1", "0.9.0"])
def test_p_eagle_is_not_compiled_at_each_step(version: str, laid_out: LAID_OUT) -> None:
    laid_out(version)
    assert running.last_json(running.python(version, "-c", LENGTHS)) == 2
