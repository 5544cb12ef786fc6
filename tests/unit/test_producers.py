"""Settings of several producers and of Mooncake, and what becomes of them on command lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from packaging.version import Version

from recipes import upstream
from recipes.config import ConfigError, Recipe, resolve
from recipes.plan import make_plan
from recipes.run_folder import RunFolder
from recipes.server_specs import alike, extraction_server, plain_server, store_of
from recipes.vllm import mooncake
from recipes.vllm.mooncake import Store
from recipes.vllm_server import Installed, ServerError, ServerSpec, command


def recipe(*settings: str) -> Recipe:
    return resolve("dgx-spark", None, settings)[0]


def after(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (("producers=0",), "must be at least 1"),
        (("producers=2", "num_workers=0"), "--set num_workers=2"),
        (("train_endpoint=http://a,http://b", "num_workers=0"), "asks for one sample at a time"),
        (("transfer=mooncake", "hidden_states=offline"), "take transfer=file, or online"),
        (("producers=3", "num_workers=2"), "that 2 of 3 producers would work"),
        (("trainers=2", "producers=4", "num_workers=1"), "one sample at a time a trainer, so that"),
        (("producers=13",), "--set num_workers=13"),
        (("mooncake_port=0",), "must be at least 1"),
        (("mooncake_port=65536",), "is not a port: 1 to 65535"),
        (("hosts=a,b", "producer_port=65533", "producers=4"), "65536 is above 65535"),
        (("hosts=a,b", "producers=4", "rendezvous_port=8103"), "rendezvous_port=8103 is one of"),
        (
            ("hosts=a,b", "transfer=mooncake", "mooncake_port=8100"),
            "mooncake_port=8100 is one of the producers' ports, 8100 to 8100",
        ),
        (("hosts=a,b", "transfer=mooncake", "mooncake_port=29400"), "is mooncake_port too"),
        (("hosts=a, b",), "hosts names ' b', which is no name"),
        (("hosts=a:22,b",), "hosts names 'a:22'"),
        (("train_endpoint=10.0.0.1:8100",), "train_endpoint='10.0.0.1:8100' is no URL"),
        (("train_endpoint=http://a,b",), "train_endpoint='b' is no URL"),
        (("regenerate_endpoint=http://a:port",), "is no URL of a server"),
        (("transfer=nfs",), "not one of file, mooncake"),
        (("mooncake_master=somewhere",), "must have the form host:port"),
        (("mooncake_segment_gib=0",), "must be positive"),
        (("mooncake_segment_gib=0.01",), "Mooncake's smallest"),
    ],
)
def test_what_cannot_work_is_refused(settings: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        recipe(*settings)


@pytest.mark.parametrize(
    "settings",
    [
        ("trainers=2", "producers=2", "num_workers=0"),  # each asks for one
        ("producers=4", "num_workers=0", "hidden_states=offline"),  # extraction asks for more
        ("producers=4", "rendezvous_port=8103"),  # one machine: free ports
        ("hosts=10.0.0.1,node-2.lan", "producer_port=65535"),
        ("hosts=a,b", "transfer=mooncake", "mooncake_port=8100", "mooncake_master=c:1"),
        ("train_endpoint=https://a.b/v1, http://[::1]:8100",),
    ],
)
def test_what_can_work_is_not(settings: tuple[str, ...]) -> None:
    recipe(*settings)


def test_endpoints_are_listed_once_and_in_order() -> None:
    found = recipe("train_endpoint= http://b ,http://a,http://b,")
    assert found.train_endpoints == ("http://b", "http://a")
    argv = upstream.train(
        found, data=Path("d"), output=Path("o"), logs=Path("l"),
        endpoint=",".join(found.train_endpoints),
    )  # fmt: skip
    assert after(argv, "--vllm-endpoint") == "http://b/v1,http://a/v1"
    assert "--hidden-states-backend" not in argv


def test_each_producer_has_a_name_and_a_gpu_of_its_own() -> None:
    one = plain_server(recipe())
    assert alike(one, 1, ("0", "1")) == [one]
    assert [spec.name for spec in alike(one, 3)] == ["body", "body-2", "body-3"]
    some = alike(one, 2, ("5", "4", "0"))
    assert [spec.env["CUDA_VISIBLE_DEVICES"] for spec in some] == ["5", "4"]
    with pytest.raises(ConfigError, match="need a GPU each"):
        alike(one, 3, ("0", "1"))


def test_the_gpus_are_those_that_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("nvidia0"), Path("nvidia1")]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert upstream.gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert upstream.gpus() == ("1",)


@pytest.mark.parametrize("cpu", [True, False])
def test_through_mooncake_vllm_and_the_trainer_are_told_of_one_master(cpu: bool) -> None:
    found = recipe("transfer=mooncake", "mooncake_port=777", "producer_wait_minutes=2")
    spec = extraction_server(found, Path("/unused"))
    vllm = Installed(Version("0.32.0"), cpu=cpu)
    transfer = json.loads(after(command(spec, vllm), "--kv-transfer-config"))
    assert transfer["kv_connector_module_path"] == "recipes.mooncake_hidden_states"
    told = transfer["kv_connector_extra_config"]
    assert told["mooncake"]["master_server_address"] == "127.0.0.1:777"
    assert told["patience"] == {"room_s": 120.0, "unread_s": found.request_timeout}
    argv = upstream.train(
        found, data=Path("d"), output=Path("o"), logs=Path("l"), endpoint="http://a",
        store=store_of(found),
    )  # fmt: skip
    assert after(argv, "--hidden-states-backend") == "mooncake"
    assert after(argv, "--mooncake-master") == "127.0.0.1:777"
    assert after(argv, "--mooncake-global-segment-gib") == "0"


@pytest.mark.parametrize(
    ("settings", "at_once"),
    [
        ((), "64"), (("num_workers=0",), "64"), (("trainers=4", "producers=2"), "96"),
        (("trainers=2", "num_workers=40"), "160"),
    ],
)  # fmt: skip
def test_an_extraction_server_makes_room_for_the_requests_that_can_come(
    settings: tuple[str, ...], at_once: str
) -> None:
    argv = command(
        extraction_server(recipe(*settings), Path("/unused")), Installed(Version("0.32.0"), False)
    )
    assert after(argv, "--max-num-seqs") == at_once


def test_the_plan_shows_the_master_and_every_producer(tmp_path: Path) -> None:
    found = recipe("transfer=mooncake", "producers=2")
    plan = {one.name: one for one in make_plan(found, RunFolder(tmp_path), "dgx-spark")}
    kinds = [kind for kind, _ in plan["train"].commands]
    assert kinds == ["master", "server", "server", "upstream"]
    assert plan["train"].commands[0][1][0] == "mooncake_master"
    master = " ".join(plan["train"].commands[0][1])
    assert "-default_kv_lease_ttl 90s" in master  # a slow read outlasts Mooncake's own 10 s
    assert [kind for kind, _ in plan["regenerate"].commands] == ["server", "server", "upstream"]
    mine = recipe("transfer=mooncake", "mooncake_master=store:50051")
    plan = {one.name: one for one in make_plan(mine, RunFolder(tmp_path), "dgx-spark")}
    assert "master" not in [kind for kind, _ in plan["train"].commands]


def test_a_server_has_one_place_for_hidden_states() -> None:
    with pytest.raises(ServerError, match="one of extraction_folder and extraction_store"):
        ServerSpec(
            "x", "m", extraction_layers=(1,), extraction_folder=Path("f"),
            extraction_store=Store("127.0.0.1:1"),
        )  # fmt: skip


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mooncake, "package", lambda: None)
    assert "speculators-patches[mooncake]" in str(mooncake.missing())
    monkeypatch.setattr(mooncake, "package", lambda: tmp_path)
    monkeypatch.setattr(mooncake, "_loads", lambda name: name != "librdmacm.so.1")
    assert "apt-get install libibverbs1 librdmacm1" in str(mooncake.missing())
    with pytest.raises(ServerError, match=r"needs librdmacm\.so\.1"):
        mooncake.require()
