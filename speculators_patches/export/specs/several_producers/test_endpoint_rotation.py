"""Which of several servers is asked next."""

import pytest

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
