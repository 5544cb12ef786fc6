"""A key or password is refused before it is written anywhere, and not repeated."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import httpx
import pytest
from packaging.version import Version
from typer.testing import CliRunner

from benchmarks import acceptance
from recipes import no_secrets
from recipes.config import ConfigError, resolve
from recipes.gemma4_abliterated import app
from recipes.vllm import probes
from recipes.vllm.errors import ServerError
from recipes.vllm.process import pool_environment
from recipes.vllm.spec import Installed, ServerSpec, environment

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (f"--api-key {SECRET}", "VLLM_API_KEY"),
        (f"--max-num-seqs 8 --api-key={SECRET}", "VLLM_API_KEY"),
        (f"--api_key {SECRET}", "VLLM_API_KEY"),
        (f"--api-k {SECRET}", "VLLM_API_KEY"),
        (f"--hf-token {SECRET}", "HF_TOKEN"),
        (f"--hf_token={SECRET}", "HF_TOKEN"),
        (f"--watermark-config.key {SECRET}", "--watermark-config"),
        (f"'--api-key {SECRET}'", "VLLM_API_KEY"),  # one word, as --set 'vllm_extra=...' makes it
        (f"'--hf-token={SECRET} '", "HF_TOKEN"),
        (f"--otlp-traces-endpoint http://me:{SECRET}@host:4317", "address with a user's name"),
    ],
)
def test_flags_that_give_a_secret_are_refused(flags: str, named: str) -> None:
    words = shlex.split(flags)
    with pytest.raises(ConfigError, match=r"^vllm_extra: [^\n]+$") as refused:
        resolve("h100", None, [f"vllm_extra={json.dumps(words)}"])
    assert named in str(refused.value)
    assert SECRET not in str(refused.value)
    with pytest.raises(ServerError, match=named) as no_server:
        ServerSpec("one", "model", extra_args=tuple(words))
    assert SECRET not in str(no_server.value)


@pytest.mark.parametrize(
    "flags",
    [
        "--hf-token",  # the one that `hf auth login` left
        "--hf-token --max-num-seqs 8",
        "--api-server-count 2",
        "--hf-overrides {}",
        "--max-num-seqs 8",
        "--served-model-name api-key",
        "'--max-num-seqs 8'",
        '--hf-overrides \'{"a": "x@y"}\'',
        "--otlp-traces-endpoint http://host:4317/me@host",
        "",
    ],
)
def test_other_flags_are_taken(flags: str) -> None:
    assert no_secrets.in_flags(shlex.split(flags)) is None


@pytest.mark.parametrize("setting", ["regenerate_endpoint", "train_endpoint"])
@pytest.mark.parametrize(
    "urls",
    [f"http://me:{SECRET}@host:8000", f"http://a:1,http://{SECRET}@b:2", f"http://me:{SECRET}@[::"],
)
def test_addresses_with_a_password_are_refused(setting: str, urls: str) -> None:
    with pytest.raises(ConfigError, match="holds a user's name or password") as refused:
        resolve("h100", None, [f"{setting}={urls}"])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("setting", ["regenerate_endpoint", "train_endpoint"])
def test_an_address_with_a_query_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting} holds a query") as refused:
        resolve("h100", None, [f"{setting}=http://a:1,http://b:2/?api_key={SECRET}"])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("setting", ["body", "prompts", "bench_prompts", "draft_start", "hosts"])
def test_no_other_setting_takes_or_repeats_a_password(setting: str) -> None:
    value = f"me:{SECRET}@a,b" if setting == "hosts" else f"https://me:{SECRET}@host/x.jsonl"
    with pytest.raises(ConfigError, match=f"^{setting} holds ") as refused:
        resolve("h100", None, [f"{setting}={value}"])
    assert SECRET not in str(refused.value)


def test_a_revision_is_no_password() -> None:
    recipe, _ = resolve("h100", None, ["prompts=hf://datasets/me/mine@main"])
    assert recipe.prompts == "hf://datasets/me/mine@main"


def test_a_master_with_a_password_is_refused() -> None:
    with pytest.raises(ConfigError, match="mooncake_master holds a user's name") as refused:
        resolve("h100", None, [f"mooncake_master=me:{SECRET}@host:50051"])
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("command", ["plan", "all", "join", "settings", "serve", "doctor"])
def test_no_command_writes_or_says_it(tmp_path: Path, command: str) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    words = [command, "--preset", "h100", "--run-dir", str(run)]
    words += ["--set", f'vllm_extra=["--api-key", "{SECRET}"]']
    if command == "plan":
        words += ["--launcher", "slurm", "--out", str(out)]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 2
    assert SECRET not in found.output
    assert "VLLM_API_KEY" in found.output
    assert not run.exists()
    assert not out.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--body", "b", "--server-flags", f"--api-key {SECRET}"],
        ["--body", "b", "--eagle3", "d=x", "--variant", f"v=--hf-token {SECRET}"],
        ["--body", "b", "--arm", f'a={{"model": "m", "server_flags": ["--api-key", "{SECRET}"]}}'],
        ["--endpoint", f"mine=http://me:{SECRET}@host:8000"],
        ["--endpoint", f"mine=http://host:8000/?api_key={SECRET}"],
    ],
)
def test_the_bench_takes_none_either(tmp_path: Path, capsys, words: list[str]) -> None:
    out = tmp_path / "results.json"
    code = acceptance.main([*words, "--dry-run", "--out", str(out)])
    said = capsys.readouterr()
    assert code
    assert SECRET not in said.out + said.err
    assert not out.exists()


def test_servers_of_stages_are_asked_without_the_key_of_production(monkeypatch) -> None:
    """Else every request of upstream's clients, which send none, would be answered 401."""
    vllm = Installed(Version("0.32.0"), cpu=False)
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    assert environment(ServerSpec("one", "model"), vllm)["VLLM_API_KEY"] == ""
    monkeypatch.delenv("VLLM_API_KEY")
    assert "VLLM_API_KEY" not in environment(ServerSpec("one", "model"), vllm)


def test_the_pool_that_servers_are_forked_from_has_no_key_either(monkeypatch) -> None:
    """It may have been started while one was set, and fork when none is."""
    monkeypatch.setenv("VLLM_API_KEY", SECRET)
    monkeypatch.setenv("ANOTHER", "kept")
    found = pool_environment()
    assert "VLLM_API_KEY" not in found
    assert found["ANOTHER"] == "kept"


def test_a_users_server_that_wants_a_key_is_said_to() -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(401, json={"error": "Unauthorized"})

    with (
        httpx.Client(base_url="http://one", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ServerError, match="wants an API key, and upstream's clients send none"),
    ):
        probes.model(client, ServerSpec("one", "model"))
