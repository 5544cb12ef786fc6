"""Who runs where: every process once, no GPU twice for the same kind; refusals in one sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.config import ConfigError, resolve
from recipes.spread.placement import HERE, place


def recipe(*settings: str, preset: str = "h100"):
    return resolve(preset, None, list(settings))[0]


def shape(*settings: str) -> list[tuple[int, tuple[int, ...]]]:
    return [(host.trainers, host.producers) for host in place(recipe(*settings)).hosts]


def test_one_of_each_shares_a_gpu_as_published() -> None:
    (host,) = place(recipe()).hosts
    assert (host.name, host.trainers, host.producers, host.gpus) == (HERE, 1, (0,), 1)
    assert host.shared == (0,)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["trainers=2"], [(2, (2,))]),
        (["trainers=2", "producers=2", "host_gpus=2"], [(2, (0, 1))]),
        (["hosts=a,b"], [(1, ()), (0, (0,))]),
        (["hosts=a,b", "trainers=2", "producers=2"], [(2, ()), (0, (0, 1))]),
        (["hosts=a,b", "trainers=2", "producers=2", "host_gpus=1"], [(1, (0,)), (1, (0,))]),
        (["hosts=a,b,c", "trainers=2", "producers=4"], [(2, ()), (0, (0, 1)), (0, (0, 1))]),
        (
            ["hosts=a,b", "trainers=4", "producers=8", "host_gpus=8"],
            [(4, (4, 5, 6, 7)), (0, (0, 1, 2, 3))],
        ),
        (["hidden_states=offline", "trainers=2", "producers=2"], [(2, (0, 1))]),
        (
            ["hosts=a,b,c,d", "trainers=4", "producers=4", "host_gpus=2"],
            [(2, ()), (2, ()), (0, (0, 1)), (0, (0, 1))],
        ),
    ],
)
def test_trainers_lead_and_producers_take_what_is_left(settings, expected) -> None:
    assert shape(*settings) == expected


@given(
    trainers=st.integers(1, 20),
    producers=st.integers(1, 20),
    machines=st.integers(1, 5),
    gpus=st.none() | st.integers(1, 8),
)
def test_every_process_has_a_place_or_the_whole_is_refused(
    trainers: int, producers: int, machines: int, gpus: int | None
) -> None:
    hosts = ",".join(f"h{number}" for number in range(machines))
    settings = [f"hosts={hosts}", f"trainers={trainers}", f"producers={producers}"]
    settings += ["num_workers=20"]  # enough for all producers
    settings += [f"host_gpus={gpus}"] if gpus else []
    try:
        placement = place(recipe(*settings))
    except ConfigError:
        return
    assert sum(host.trainers for host in placement.hosts) == trainers
    assert sum(len(host.producers) for host in placement.hosts) == producers
    assert placement.hosts[0].trainers
    assert len({host.trainers for host in placement.trainer_hosts}) == 1  # torchrun's nproc
    assert 0 <= placement.crossing <= 1
    for host in placement.hosts:
        assert len(set(host.producers)) == len(host.producers)
        assert host.trainers or host.producers
        assert host.gpus == max(host.trainers, 1 + max(host.producers, default=-1))
        if gpus:
            assert host.gpus <= gpus
    if not gpus and (trainers, producers) != (1, 1):
        assert not any(host.shared for host in placement.hosts)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["trainers=3", "host_gpus=2"], "trainers=3 need a GPU each, and there are 2"),
        (["producers=5", "host_gpus=2", "hosts=a,b"], "producers=5 need a GPU each"),
        (["hosts=a,b", "trainers=3", "host_gpus=2"], "can't be divided evenly over 2 machines"),
        (["hosts=a,b,a"], "hosts names a twice"),
        (["hosts=localhost,b"], "the other machines would find themselves"),
        (["hosts=a,b,c"], "nothing would run on b"),
        (["hosts=a,b", "host_gpus=8"], "nothing would run on b"),
        (["fsdp=true"], "trainers=1: raise it"),
    ],
)
def test_what_cannot_be_placed_is_refused(settings, part) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as refused:
        place(recipe(*settings))
    assert part in str(refused.value)


@pytest.mark.parametrize(
    "setting", ["trainers=0", "producers=0", "host_gpus=0", "network_gbit=0", "disk_mb=-1",
                "trainer_tokens_s=0", "max_restarts=-1", "rendezvous_port=70000"]
)  # fmt: skip
def test_senseless_numbers_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        recipe(setting)


def test_rows_cross_the_network_unless_producer_and_trainer_share_a_machine() -> None:
    assert place(recipe("trainers=2", "producers=2")).crossing == 0
    assert place(recipe("hosts=a,b", "trainers=2", "producers=2")).crossing == 1
    both = place(recipe("hosts=a,b", "trainers=2", "producers=2", "host_gpus=1"))
    assert both.crossing == 0.5
