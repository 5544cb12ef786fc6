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
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.deterministic, cudnn.benchmark = before


def put_twice():
    """No order is defined, on no device."""
    torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))


def test_the_flag_reaches_every_operation():
    set_seed(0, deterministic=True)

    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    with pytest.raises(RuntimeError, match="deterministic"):
        put_twice()


def test_a_workspace_that_was_chosen_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")

    set_seed(0, deterministic=True)

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_without_the_flag_nothing_is_set():
    set_seed(0)

    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    put_twice()


def test_the_seeds_are_those_of_before():
    set_seed(7, deterministic=True)
    drawn = torch.rand(3)
    set_seed(7)

    assert torch.equal(torch.rand(3), drawn)
