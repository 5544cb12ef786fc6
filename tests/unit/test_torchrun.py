"""The command around the trainer, its environment, and the interface between machines."""

from __future__ import annotations

import socket
import sys

import pytest
from torch.distributed import run as upstream_torchrun

from recipes import upstream
from recipes.config import resolve
from recipes.spread import interfaces, torchrun


def train(tmp_path, *settings: str, number: int = 0) -> list[str]:
    recipe, _ = resolve("h100", None, list(settings))
    return upstream.train(
        recipe, data=tmp_path, output=tmp_path, logs=tmp_path, endpoint="http://e",
        accelerator=True, number=number,
    )  # fmt: skip


def parsed(argv: list[str]):
    """What torchrun's own parser makes of it."""
    assert argv[:3] == [sys.executable, "-m", "torch.distributed.run"]
    return upstream_torchrun.get_args_parser().parse_args(argv[3:])


def test_one_trainer_needs_no_torchrun(tmp_path) -> None:
    argv = train(tmp_path)
    assert argv[1:4] == ["-m", "speculators_patches", "run"]
    assert torchrun.environment(resolve("h100")[0]) == {}


def test_several_on_one_machine_are_one_torchrun(tmp_path) -> None:
    argv = train(tmp_path, "trainers=4", "max_restarts=7", "fsdp=true")
    found = parsed(argv)
    assert (found.nproc_per_node, found.standalone, found.max_restarts) == ("4", True, 7)
    assert found.local_addr == "127.0.0.1"
    assert (found.module, found.training_script) == (True, "speculators_patches")
    assert found.training_script_args[:4] == ["run", "--module", "speculators.train", "--"]
    assert "--fsdp-shard" in argv


def test_several_machines_meet_at_the_first(tmp_path) -> None:
    settings = ("hosts=a,b,c", "trainers=4", "producers=2", "host_gpus=2")
    both = [parsed(train(tmp_path, *settings, number=number)) for number in (0, 1)]
    for number, found in enumerate(both):
        assert (found.nnodes, found.nproc_per_node) == ("2", "2")
        assert (found.rdzv_backend, found.rdzv_endpoint) == ("c10d", "a:29400")
        assert f"is_host={1 - number}" in found.rdzv_conf
        assert found.local_addr == "ab"[number]
    assert both[0].training_script_args == both[1].training_script_args


def test_the_environment_lets_ranks_start_again(monkeypatch) -> None:
    recipe, _ = resolve("h100", None, ["trainers=2"])
    for name in torchrun.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert torchrun.environment(recipe) == torchrun.ENVIRONMENT
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "7")
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in torchrun.environment(recipe)


def test_an_address_of_this_machine_alone_is_told_from_others() -> None:
    assert interfaces.address("localhost") == "127.0.0.1"
    assert interfaces.address("127.0.1.1") == "127.0.1.1"
    assert interfaces.address("no such name") is None
    assert [interfaces.is_own(one) for one in ("127.0.1.1", "0.0.0.0", "192.0.2.1")] == [
        True, True, False,
    ]  # fmt: skip
    assert interfaces.towards("127.0.0.1") is None
    assert interfaces.towards("no such name") is None


def test_machines_talk_over_the_interface_that_has_their_address(monkeypatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    recipe, _ = resolve("h100", None, ["hosts=127.0.0.2,127.0.0.3", "trainers=2", "host_gpus=1"])
    assert torchrun.environment(recipe, 1)["GLOO_SOCKET_IFNAME"] == "lo"
    assert interfaces.of("127.0.0.1") == "lo"
    assert interfaces.of("203.0.113.7") is None  # nobody's
    assert interfaces.of("no such name") is None
    names = {name for _, name in socket.if_nameindex()}
    assert interfaces.of("127.0.0.9") in names


@pytest.mark.parametrize(
    ("log", "count"),
    [
        ("", 0),
        ("E1124 api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: python\n", 1),
        ("failed (exitcode: 1) local_rank: 0\nother\nfailed (exitcode: -9) local_rank: 1\n", 2),
    ],
)
def test_restarts_are_read_from_torchruns_log(tmp_path, log: str, count: int) -> None:
    path = tmp_path / "log"
    path.write_text("failed (exitcode: 1) local_rank: 0 of an earlier attempt\n" + log)
    offset = path.read_text().index("\n") + 1
    assert torchrun.restarts(path, offset) == count
    recipe, _ = resolve("h100", None, ["trainers=2"])
    assert bool(torchrun.progress(recipe, path, offset)) == bool(count)
    assert torchrun.restarts(tmp_path / "none") == 0
