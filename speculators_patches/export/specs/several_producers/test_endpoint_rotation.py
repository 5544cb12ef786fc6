"""Which of several servers is asked next."""

import pytest
from torch.utils.data import DataLoader, Dataset

from speculators.train.endpoints import EndpointRotation


def test_the_rotation_leaves_out_what_failed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("speculators.train.endpoints.time.monotonic", lambda: now[0])
    rotation = EndpointRotation("a, b,c,b", rest=10)
    assert [rotation.next() for _ in range(4)] == ["a", "b", "c", "a"]

    rotation.failed("b")
    assert [rotation.next() for _ in range(3)] == ["c", "a", "c"]
    now[0] = 5
    rotation.failed("a")
    rotation.failed("c")
    assert rotation.next() == "b"
    now[0] = 11
    assert [rotation.next() for _ in range(2)] == ["b", "b"]
    rotation.answered("a")
    assert rotation.next() == "a"


@pytest.mark.parametrize("listed", ["", " , "])
def test_no_address_is_refused(listed):
    with pytest.raises(ValueError, match="names no address"):
        EndpointRotation(listed)


class Turns(Dataset):
    """The address that a worker would ask first."""

    def __init__(self):
        self.rotation = EndpointRotation("a,b,c,d")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self.rotation.next()


@pytest.mark.parametrize(("rank", "first"), [(0, ["a", "b"]), (1, ["b", "c"])])
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_ranks_and_workers_begin_elsewhere(monkeypatch, rank, first, method):
    monkeypatch.setenv("RANK", str(rank))
    loader = DataLoader(
        Turns(), batch_size=None, num_workers=2, multiprocessing_context=method
    )

    assert list(loader) == first
