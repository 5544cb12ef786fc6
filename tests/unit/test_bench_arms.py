"""Arms from the command line: what is compared with what, and what is refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.acceptance import main
from benchmarks.arms import (
    NO_SPECULATION,
    ArmError,
    Drafter,
    eagle3,
    multiply,
    parse_arm,
    parse_endpoint,
    with_server,
)
from benchmarks.options import make_setup, parser
from benchmarks.prompts import WorkloadPrompt
from benchmarks.schedule import seed_of, share, visits
from recipes.vllm_server import ServerSpec

EAGLE = {"method": "eagle3", "model": "X"}


def test_every_drafter_at_every_n_besides_no_speculation() -> None:
    arms = multiply([eagle3("a", "A"), eagle3("a", "A", probabilistic=True)], [0, 2, 1, 2])
    assert [(a.name, a.n) for a in arms] == [
        (NO_SPECULATION, 0), ("a", 1), ("a", 2), ("a, probabilistic", 1), ("a, probabilistic", 2),
    ]  # fmt: skip
    assert arms[0].speculative_config is None
    assert arms[4].speculative_config == {
        "method": "eagle3", "model": "A", "draft_sample_method": "probabilistic",
        "num_speculative_tokens": 2,
    }  # fmt: skip


def test_each_body_and_each_set_of_flags_has_its_own_base() -> None:
    drafters = [eagle3("a", "A"), Drafter("b", EAGLE, body="models/other")]
    arms = multiply(drafters, [1], {"fp8": ("--kv-cache-dtype", "fp8")})
    bases = {a.like: a.name for a in arms if a.n == 0}
    assert {a.key: bases[a.like] for a in arms if a.n} == {
        "a, n = 1": NO_SPECULATION,
        "b, n = 1": f"{NO_SPECULATION} (other)",
        "a, fp8, n = 1": f"{NO_SPECULATION}, fp8",
        "b, fp8, n = 1": f"{NO_SPECULATION} (other), fp8",
    }


def test_an_arm_of_any_kind() -> None:
    text = 'mine={"method": "dflash", "model": "D", "num_speculative_tokens": 7, "body": "B", '
    found = parse_arm(text + '"server_flags": ["--kv-cache-dtype", "turboquant_k8v4"]}')
    base, arm = multiply([found], [1, 2])[1:]  # the first is the main body's
    assert (arm.n, arm.body, arm.experimental, base.experimental) == (7, "B", True, True)
    assert arm.speculative_config == {
        "method": "dflash", "model": "D", "num_speculative_tokens": 7
    }  # fmt: skip
    server = with_server(arm, ServerSpec("", "main", extra_args=("--x",)), True).server
    assert server is not None
    assert (server.model, server.speculative_config) == ("B", arm.speculative_config)
    assert server.extra_args == (
        "--x", "--kv-cache-dtype", "turboquant_k8v4", "--per-request-spec-decode-metrics",
        "detailed",
    )  # fmt: skip
    plain = with_server(base, ServerSpec("", "main"), True).server
    assert plain is not None
    assert plain.extra_args == ("--kv-cache-dtype", "turboquant_k8v4")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "name=value"),
        ("=1", "name=value"),
        ("x={", "not valid JSON"),
        ("x=[]", "must be a JSON object"),
        ('x={"n": 1}', 'needs a "method" or a "model"'),
        ('x={"model": "m", "server_flags": "--a"}', "list of strings"),
    ],
)
def test_an_arm_that_cannot_be_understood(text: str, says: str) -> None:
    with pytest.raises(ArmError, match=says):
        parse_arm(text)


def test_two_arms_of_one_name_are_refused() -> None:
    with pytest.raises(ArmError, match="'a' with n = 1"):
        multiply([eagle3("a", "A"), eagle3("a", "B")], [1])


def test_endpoints_say_how_deep_they_draft() -> None:
    arm = parse_endpoint("drafter:4=http://127.0.0.1:1")
    assert (arm.spec.name, arm.spec.n, arm.endpoint) == ("drafter", 4, "http://127.0.0.1:1")
    assert parse_endpoint("plain=http://x").spec.n == 0
    for bad in ("drafter:x=http://y", "drafter=127.0.0.1:1"):
        with pytest.raises(ArmError, match="name:n=http"):
            parse_endpoint(bad)


@given(st.integers(1, 30), st.integers(1, 8), st.integers(1, 9))
def test_every_prompt_is_asked_once_by_every_arm(count: int, blocks: int, at_once: int) -> None:
    prompts = [WorkloadPrompt(str(k), "x", "short", False, ()) for k in range(count)]
    shares = [share(prompts, block, blocks, at_once) for block in range(blocks)]
    assert sorted(p.id for s in shares for p in s) == sorted(p.id for p in prompts)
    # A share fills the concurrency twice, unless all prompts together do not.
    assert all(not s or len(s) >= min(count, 2 * at_once) for s in shares)


def test_no_arm_is_always_first_and_the_turn_keeps_its_server() -> None:
    order = [(v.block, v.arm) for v in visits(3, 3)]
    assert order == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_seeds_differ_by_prompt_and_by_the_benchs_seed() -> None:
    assert len({seed_of(f"p{k}", s) for k in range(20) for s in (0, 1)}) == 40
    assert seed_of("p", 3) == seed_of("p", 3)


def test_another_bench_is_another_fingerprint(tmp_path: Path) -> None:
    """A rerun continues only what is the same bench, weights and server flags included."""
    (tmp_path / "body").mkdir()
    weights = tmp_path / "body" / "model.safetensors"
    weights.write_bytes(b"1")

    def fingerprint(*more: str) -> str:
        given = ["--body", str(tmp_path / "body"), "--eagle3", "a=b", "--smoke", *more]
        return make_setup(parser("").parse_args(given)).fingerprint()

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    for more in (
        ["--dtype", "float32"], ["--server-flags=--enable-prefix-caching"], ["--n", "2"],
        ["--temperature", "0"], ["--raw"], ["--limit", "2"], ["--request", '{"top_k": 3}'],
        ["--max-model-len", "100"],
    ):  # fmt: skip
        seen.append(fingerprint(*more))
    weights.write_bytes(b"22")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


def test_a_dry_run_says_what_would_run_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        [
            "--body", "some/body", "--eagle3", "tuned=some/drafter", "--mtp", "some/mtp",
            "--n", "2", "--smoke", "--variant", "tq=--kv-cache-dtype turboquant_k8v4", "--raw",
            "--concurrency", "1", "8", "--dry-run", "--out", str(tmp_path / "out"),
        ]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0
    assert "10 arms x 18 prompts x 2 temperatures x 2 concurrencies = 720 requests" in said
    assert "RAW ENDPOINT" in said
    assert said.count("(experimental)") == 5
    config = json.dumps({"method": "mtp", "model": "some/mtp", "num_speculative_tokens": 2})
    assert said.count(f"--speculative-config '{config}'") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing to compare"),
        (("--eagle3", "a=b"), "--body is missing"),
        (("--body", "b", "--eagle3", "a"), "name=value"),
        (("--body", "b", "--dataset", "missing.jsonl"), "Cannot read the prompts missing.jsonl"),
        (("--body", "b", "--concurrency", "0"), "--concurrency 0 must be at least 1"),
        (("--body", "b", "--temperature", "-1"), "--temperature -1.0 must be 0 or more"),
        (("--body", "b", "--limit", "0"), "No prompt is left"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
