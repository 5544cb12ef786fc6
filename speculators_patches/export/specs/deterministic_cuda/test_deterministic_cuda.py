"""``--deterministic-cuda`` reaches every operation, and nothing does without it."""

import os

import pytest
import torch

from speculators.train.cli import set_seed


@pytest.fixture(autouse=True)
def settings_put_back(monkeypatch):
    # Set and taken out again, so that what the test itself sets is undone too.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    cudnn, dynamo = torch.backends.cudnn, torch._dynamo.config
    before = cudnn.deterministic, cudnn.benchmark
    compiled = dynamo.automatic_dynamic_shapes, dynamo.recompile_limit
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before
    dynamo.automatic_dynamic_shapes, dynamo.recompile_limit = compiled


def put_twice():
    """No order is defined, on no device."""
    torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))


def test_the_flag_reaches_every_operation():
    set_seed(0, deterministic=True)

    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="deterministic"):
        put_twice()


def graphs_of_two_steps():
    """Which compiled graphs run when keys grow as over the TTT steps, twice."""
    torch._dynamo.reset()
    made, ran = [], []

    def noting(graph, examples):
        made.append(graph)
        number = len(made)

        def run(*arguments):
            ran.append(number)
            return graph.forward(*arguments)

        return run

    layer = torch.compile(lambda keys: keys.sum(), backend=noting)
    steps = []
    for _ in range(2):
        ran.clear()
        for length in range(1, 12):
            layer(torch.zeros(8 * length))
        steps.append(list(ran))
    return steps


def test_the_first_step_of_a_process_runs_the_code_of_the_next():
    set_seed(0, deterministic=True)

    first, second = graphs_of_two_steps()

    assert first == second == list(range(1, 12))


def test_a_workspace_that_was_chosen_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")

    set_seed(0, deterministic=True)

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_without_the_flag_nothing_is_set():
    set_seed(0)

    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert torch._dynamo.config.automatic_dynamic_shapes
    put_twice()


def test_the_seeds_are_those_of_before():
    set_seed(7, deterministic=True)
    drawn = torch.rand(3)
    set_seed(7)

    assert torch.equal(torch.rand(3), drawn)
