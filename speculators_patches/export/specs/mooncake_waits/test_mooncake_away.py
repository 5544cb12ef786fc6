"""A Mooncake master that is away for a while costs no sample."""

import ctypes
import socket
import sys
import threading
import time
import types

import pytest
import torch

# hs_connectors is an optional dependency (the mooncake extra); skip when absent.
pytest.importorskip("hs_connectors.mooncake_store")

from hs_connectors.mooncake_store import (
    VERSION,
    MooncakeHiddenStatesStore,
    MooncakeIntegrityError,
    MooncakeStoreConfig,
    packed_layout,
)
from hs_connectors.transfer import MooncakeTransfer

AWAY = -900
MODULE = "hs_connectors.mooncake_store"


class FakeStore:
    """In-memory stand-in for MooncakeDistributedStore whose master can be away."""

    def __init__(self):
        self.objects = {}
        self.away_until = 0.0
        self.config = None

    def be_away(self, seconds, then=None):
        self.away_until = time.monotonic() + seconds
        if then is not None:
            threading.Timer(seconds, then).start()

    @property
    def is_away(self):
        return time.monotonic() < self.away_until

    def setup(self, *config):
        self.config = config
        return 0

    def is_exist(self, key):
        return AWAY if self.is_away else int(key in self.objects)

    def put(self, key, value):
        self.objects[key] = value
        return 0

    def put_from(self, key, pointer, size):
        self.objects[key] = bytes((ctypes.c_char * size).from_address(pointer))
        return 0

    def get_size(self, key):
        return AWAY if self.is_away else len(self.objects[key])

    def get_into(self, key, pointer, size):
        ctypes.memmove(pointer, self.objects[key], size)
        return size

    def register_buffer(self, pointer, size):
        return 0


TENSORS = {
    "hidden_states": torch.randn(5, 4, 8).to(torch.bfloat16),
    "token_ids": torch.arange(5),
}


def manifest(handle="sample"):
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in TENSORS.items()}
    layout, size = packed_layout(shapes)
    return {
        "handle": handle,
        "version": VERSION,
        "tensors": layout,
        "metadata": {"total_aligned_bytes": size},
    }


@pytest.fixture
def store():
    store = MooncakeHiddenStatesStore(MooncakeStoreConfig())
    store._store = FakeStore()
    return store


def read(store):
    return MooncakeTransfer(store).get_generated(manifest())


def test_a_sample_is_waited_for_while_the_master_is_away(store):
    store.put_sample(manifest(), TENSORS)
    store._store.be_away(0.5)

    found = read(store)

    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_one_that_is_stored_after_the_master_is_back_is_had(store):
    store._store.be_away(0.5)
    timer = threading.Timer(1.0, lambda: store.put_sample(manifest(), TENSORS))
    timer.start()

    found = read(store)

    assert torch.equal(found["token_ids"], TENSORS["token_ids"])


def test_one_that_the_master_forgot_is_given_up_soon(store, monkeypatch):
    monkeypatch.setattr(f"{MODULE}._LOST_AFTER", 0.3, raising=False)
    store._store.be_away(0.5)
    began = time.monotonic()

    with pytest.raises(Exception, match="sample"):
        read(store)

    assert 0.5 < time.monotonic() - began < 40


def test_what_the_producer_says_is_heard_after_an_absence(store):
    store.put_error(manifest(), "it is not finite")
    store._store.be_away(0.5)

    with pytest.raises(MooncakeIntegrityError, match="it is not finite"):
        read(store)


def test_a_master_that_stays_away_is_an_error_in_the_end(store):
    store._store.be_away(60)

    with pytest.raises(RuntimeError, match=f"status={AWAY}"):
        store.get_sample(manifest(), timeout=0.5)


@pytest.fixture
def mooncake(monkeypatch):
    module = types.ModuleType("mooncake.store")
    module.MooncakeDistributedStore = FakeStore
    monkeypatch.setitem(sys.modules, "mooncake", types.ModuleType("mooncake"))
    monkeypatch.setitem(sys.modules, "mooncake.store", module)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connect(address):
    store = MooncakeHiddenStatesStore(
        MooncakeStoreConfig(master_server_address=address)
    )
    MooncakeTransfer(store).setup()
    return store


def test_a_client_starts_once_the_master_takes_connections(mooncake):
    port = free_port()
    listening = []

    def listen():
        listening.append(socket.create_server(("127.0.0.1", port)))

    threading.Timer(1.0, listen).start()

    store = connect(f"127.0.0.1:{port}")

    assert listening
    assert store._store.config[-1] == f"127.0.0.1:{port}"
    listening[0].close()


def test_without_a_master_no_client_is_made(mooncake, monkeypatch):
    monkeypatch.setattr(f"{MODULE}._MASTER_TIMEOUT", 0.5, raising=False)

    with pytest.raises(Exception, match="takes no connection"):
        connect(f"127.0.0.1:{free_port()}")


def test_the_wait_for_a_master_can_be_interrupted(mooncake, monkeypatch):
    def interrupt(_seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"{MODULE}.time.sleep", interrupt)

    with pytest.raises(KeyboardInterrupt):
        connect(f"127.0.0.1:{free_port()}")


def test_an_address_with_a_scheme_is_left_to_mooncake(mooncake):
    store = connect("etcd://127.0.0.1:1;127.0.0.1:2")

    assert store._store.config[-1] == "etcd://127.0.0.1:1;127.0.0.1:2"
